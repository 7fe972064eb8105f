"""The secure processor: boot chain, mailbox, one dispatch table, platform and guest contexts, NV store."""
