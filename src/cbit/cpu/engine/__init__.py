"""The execution engine: guests run on PyPI's unicorn (QEMU's TCG); nothing outside this folder knows it.

    engine      VMRUN … #VMEXIT of a VMCB in the machine's memory
    shadow      the engine's own nested tables, filled from the hypervisor's as the guest touches memory
    translations  what is known of the hypervisor's tables
    tables      the engine's own tables as memory
    control_block  the VMCB between the machine's memory and QEMU
    instructions   the few that QEMU does not do
    processor   one instance of unicorn: its physical address space, its registers
    native      the compiled stubs (native/*.c, compiled by build)
    interpose   puts them in the place of functions of the library
    layout      where the library keeps what the engine must see, proven at start-up
    library     the library as it lies in this process

Linux on x86-64 only.  Nothing is loaded or compiled by importing this.
"""
