"""Plans of a run that are computed before it starts: the memory of its GPUs, and the speed of its rollout schedules."""
