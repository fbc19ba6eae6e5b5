"""The readers of each kind of data file."""
