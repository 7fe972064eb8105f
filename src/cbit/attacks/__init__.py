"""The lab: each attack with its powers as explicit objects, so that it cannot cheat."""
