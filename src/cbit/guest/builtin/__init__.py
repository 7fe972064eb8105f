"""The built-in guest: a small 64-bit program for encrypted memory, assembled from the source in ``program``.

    image      its bytes, as the assembler makes them; who measures them gets the same ones everywhere
    interface  what it shares with the world outside: addresses, ports, requests
    sealed     messages that only the guest with the right key can open

Start it in the processor's reset state, with its image ending at 4 GiB.
"""
