"""Virtual machines on one host: frames, nested tables, ASIDs, launch; it carries what it cannot read."""
