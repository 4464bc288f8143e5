"""The folder of a run: which settings and models it began with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgtok import config as configs
from imgtok.atomic import write_text

SETTINGS_FILE, ORIGINS_FILE = "train.json", "origins.json"


def prepare_folder(out: Path, config: Any, resume: bool, origins: Mapping[str, str] | None = None) -> None:
    """`out` for a new run, or for going on with the same one.

    `origins`: fingerprints (`imgtok.hub.fingerprint`) of the models that it begins with, by what they are for.
    ValueError if there is a run with other settings or models in `out`, or none to resume.
    """
    path, known = out / SETTINGS_FILE, (out / SETTINGS_FILE).is_file()
    if out.is_file():
        raise ValueError(f"{out} is a file; choose a folder for the run")
    if known and not resume:
        raise ValueError(f"{out} already holds a run; add --resume to go on with it, or choose another --out")
    if known and configs.read_json(path) != configs.to_dict(config):
        raise ValueError(
            f"{out} holds a run with other settings than these; repeat its settings or choose another --out"
        )
    if resume and not known:
        raise ValueError(f"there is no run to resume in {out}; leave out --resume to start one")
    if known:
        check_origins(origins or {}, out)
        return
    if origins:
        write_text(out / ORIGINS_FILE, json.dumps(origins, indent=2) + "\n")
    configs.save(config, path)


def check_origins(origins: Mapping[str, str], out: Path) -> None:
    began = configs.read_json(out / ORIGINS_FILE) if (out / ORIGINS_FILE).is_file() else {}
    for name, fingerprint in origins.items():
        if began.get(name, fingerprint) != fingerprint:
            raise ValueError(f"this {name} is not the one that {out} was started with; choose another --out")
