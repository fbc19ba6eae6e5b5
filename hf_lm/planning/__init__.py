"""What a run will do and cost on this machine, before it starts."""
