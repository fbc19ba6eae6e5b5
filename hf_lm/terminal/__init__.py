"""What a user sees: tables, progress, streams and exit codes."""
