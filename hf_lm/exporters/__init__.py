"""A finished model for other runtimes, verified against the original."""
