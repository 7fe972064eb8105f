"""Tweaked AES modes, key derivation, wrapping and certificate arithmetic, on ``cryptography``."""
