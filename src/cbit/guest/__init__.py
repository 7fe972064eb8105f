"""What runs inside: firmware images to launch, the built-in guest, a Linux user space."""
