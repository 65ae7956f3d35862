"""One thread a test process: the models are tiny, and `make test` runs a process on every core."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks the hub, nor waits for its time-outs
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start

import torch

torch.set_num_threads(1)
