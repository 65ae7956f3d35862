"""What `ulorl bench` runs: peers stand beside us in one process, runs interleaved, medians reported."""
