"""Stages joined to do one job, one module per command."""
