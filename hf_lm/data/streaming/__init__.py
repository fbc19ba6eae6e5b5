"""Streaming: the same blocks, read while the model trains."""
