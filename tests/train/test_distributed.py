"""Two processes under `accelerate launch` do what one does."""

import os
import subprocess
import sys

import pytest
import torch

import imgtok
from imgtok.train.log import read

SETTINGS = [
    *("--loop.steps", "4", "--loop.batch-size", "8", "--loop.precision", "no", "--loop.log-every", "1"),
    *("--loop.evaluate-every", "0", "--loop.checkpoint-every", "4", "--data.val-share", "0.2"),
]


def run(launcher: list[str], pictures, out) -> None:
    command = [
        *launcher,
        "-m",
        "imgtok",
        "train",
        "tokenizer",
        "quickstart",
        "--data",
        str(pictures),
        "--out",
        str(out),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--device", "cpu", *SETTINGS], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_train_the_same_model_as_one(pictures, tmp_path):
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    run([*launch, "--mixed_precision", "no", "--dynamo_backend", "no"], pictures, tmp_path / "two")
    run([sys.executable], pictures, tmp_path / "one")
    one, two = (imgtok.load(tmp_path / name).state_dict() for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-3, rtol=0)
    rows = [
        [row["perplexity"] for row in read(tmp_path / name / "log.jsonl") if "loss" in row] for name in ("one", "two")
    ]
    assert len(rows[0]) == len(rows[1]) == 4
    torch.testing.assert_close(torch.tensor(rows[0]), torch.tensor(rows[1]), atol=0.05, rtol=0)
