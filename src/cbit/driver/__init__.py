"""The host's driver side: mailbox commands in, status and reason out."""
