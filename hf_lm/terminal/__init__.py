"""Output in the terminal: tables, progress, streams and exit codes."""
