"""Plan a run before it starts: steps, batch sizes, kernels, memory and disk on this machine."""
