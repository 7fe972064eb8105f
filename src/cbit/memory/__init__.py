"""The memory system: from the DRAM cells to what the cores and devices see.

      cores             devices            secure processor
        |               DmaPort, Iommu         FabricPort
        |                  | snoop                |
      Cache  <-------------+---- flush -----------+     plaintext, inside the SoC; bounded
        |                                               |
      MemoryController: key slots and inline AES engine-+
      - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - the edge of the chip
      Bus       <- tap                                  ciphertext
        |
      Dram      <- Probe, FrozenDram                    ciphertext

Nothing below the dashed line ever holds the plaintext of an encrypted page.

Paper: memory-encryption.md §1, §4.5, §5, §6.
"""
