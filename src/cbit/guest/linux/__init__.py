"""A Linux user space to boot, made in memory from files of a distribution.

initramfs        the archive
kernel_modules   modules and what they depend on
unlock           the program that opens the encrypted disk (unlock.c, compiled by the build)
user_space       the three of them, a busybox and an init script: what the kernel starts
encrypted_disk   a disk image that dm-crypt opens
"""
