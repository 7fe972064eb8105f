"""Guests that execute: what a hypervisor does between VMRUN and VMRUN.

vcpu      one virtual CPU: VMCB, registers, events on their way in
exits     one handler for each exit code
cpuid     what CPUID says to a guest
msrs      what RDMSR and WRMSR do
clock     guest time: the number of blocks that were executed
monitor   VMRUN in a loop, one guest or several in turn
"""
