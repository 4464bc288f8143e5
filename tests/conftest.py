"""One thread, so that small tensors do not wait for each other, and no window."""

import os

import torch

torch.set_num_threads(int(os.environ.get("IMGTOK_TEST_THREADS", "1")))
os.environ.setdefault("MPLBACKEND", "Agg")
