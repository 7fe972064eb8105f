"""The guest owner's computer: is the platform genuine, is the launch what I wanted, and then the secret.

    read chain -> verify_chain -> VerifiedPlatform -> Session.open -> Measuring -> check -> Trusted -> seal

Each arrow is the only way to the next type.  The owner speaks to nobody: bytes come in, bytes go out.
It needs ``cryptography`` and nothing of the machine, and runs on any operating system.
"""
