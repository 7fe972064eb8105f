"""Is it signed?  The certificate chain of a platform, up to a root that the owner trusts."""
