"""What lets unmodified programs reach the machine: their system calls answered, their files put in place."""
