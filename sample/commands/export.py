"""imgtok export: the models of a training run alone, small, to pass on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from imgtok import atomic, hub
from imgtok.generators import hub as generators
from imgtok.generators.presets import PRESETS as GENERATORS
from imgtok.sample.commands.common import Flag, check_replaced_place
from imgtok.sample.commands.generate import DTYPES, tokenizer_of
from imgtok.sample.images import check_pair

FILES = (hub.CONFIG_FILE, hub.WEIGHTS_FILE, "tokenizer")


def export(
    *,
    model: str,
    tokenizer: str | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float16",
    out: Path,
    overwrite: Flag = False,
) -> None:
    """Write a generator and its tokenizer to a folder of their own, without checkpoints, tokens and logs.

    The folder works wherever that of the run does: `imgtok generate --model OUT`.

    Args:
        model: Generator: a folder that training wrote, or whatever else `imgtok generate --model` takes.
        tokenizer: Its tokenizer, for one that was post-trained; None: the one inside the generator's folder.
        dtype: Of the parameters. Half precision is half as large and changes pictures hardly.
        out: Folder to write; whole or not at all.
        overwrite: Replace an earlier export in --out.
    """
    check_replaced_place(out, FILES, overwrite)
    if model in GENERATORS:
        raise ValueError(f"--model {model} is a preset, which loads by its name; give the folder of a run")
    partner = tokenizer or tokenizer_of(model)
    generator, decoder = generators.load(model, dtype=DTYPES[dtype]), hub.load(partner, dtype=DTYPES[dtype])
    check_pair(generator, decoder)
    with atomic.replacing_folder(out) as folder:
        hub.write_model(generator, folder)
        hub.write_model(decoder, folder / "tokenizer")
    size = sum(path.stat().st_size for path in out.rglob("*.safetensors"))
    print(f"{out}: generator and tokenizer, {size / 1e6:.1f} MB in {dtype}")
