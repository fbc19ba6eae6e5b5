"""What the operating system gives: files, signals and processes."""
