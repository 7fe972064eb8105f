"""What runs inside: firmware images to launch; the built-in guest and Linux boot come with execution."""
