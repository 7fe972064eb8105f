"""virtio 1.x devices: split queues in guest memory, PCI functions with all registers in I/O space."""
