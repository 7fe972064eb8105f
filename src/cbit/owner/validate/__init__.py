"""Is it what I wanted?  Signed evidence against the owner's own wishes; every violation in one report."""
