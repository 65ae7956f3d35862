"""The benchmarks of `ulorl bench`: ours and peers in one process, with interleaved runs and medians."""
