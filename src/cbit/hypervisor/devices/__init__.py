"""The standard devices of a PC that a stock Linux kernel needs; ``chipset`` says how they are driven.

They know ports, bytes and the guest's time, and nothing of the engine that executes the guest.
"""
