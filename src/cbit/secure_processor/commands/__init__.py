"""Handlers of the mailbox commands, one module a family; each is the paper's action list."""
