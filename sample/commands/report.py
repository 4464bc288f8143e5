"""imgtok report: a page about runs and evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from imgtok.sample.report import write_report


def report(
    *, folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")], out: Path | None = None
) -> None:
    """Draw what a folder holds as one HTML page that needs nothing but itself, also while a training goes on.

    Trainings, quickstarts, evaluations, rate-distortion curves, benchmarks, and pictures that were generated, edited
    or reconstructed are recognised by their files. Those in sub-folders come along, compared side by side.

    Args:
        folder: What `imgtok train`, `quickstart`, `generate`, `edit`, `reconstruct`, `evaluate`, `rate-distortion` or
            `bench --json` has written, or a folder of such folders.
        out: The page; None: DIR/report.html. An earlier report is replaced.
    """
    path = write_report(folder, out)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
