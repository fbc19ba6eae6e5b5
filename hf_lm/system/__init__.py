"""The operating system: files, signals and processes."""
