"""One module per recipe section: every key with its unit, range and default."""
