"""Plans of a run that are computed before it starts: the memory of its GPUs."""
