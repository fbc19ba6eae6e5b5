"""The same blocks, read while the model trains."""
