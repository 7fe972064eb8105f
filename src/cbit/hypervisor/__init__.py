"""Virtual machines on one host: frames, nested tables, ASIDs, launch.  Carries what the owner sealed, cannot read it."""
