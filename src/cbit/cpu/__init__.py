"""The CPU's side of memory encryption: a core as a plain reference model.

Page tables, TLB, registers, VMCB.  Nothing here executes instructions: a `Core` does what an access or a
privileged instruction does to memory, caches and translations, slowly and readably, and an execution engine
can be held against it.

Paper: memory-encryption.md §2 (discovery and control), §3 and §4 (C-bit, keys), §6 (caches), §7 (TLB),
§8 (ASIDs), §10.1 (VMCB).
"""
