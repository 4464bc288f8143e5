"""One thread, so that small tensors do not wait for each other, and no window."""

import os
import tempfile

import torch

torch.set_num_threads(int(os.environ.get("IMGTOK_TEST_THREADS", "1")))
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["IMGTOK_CACHE"] = tempfile.mkdtemp(prefix="imgtok-tests-")  # the user's own stays as it is
