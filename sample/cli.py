"""The command line. Only the chosen command is imported, so that `imgtok --help` answers at once."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

USAGE = "imgtok COMMAND [OPTIONS]      (imgtok COMMAND --help: its options and their defaults)"

# command -> (where it lives, what it does); the functions' signatures are the options.
COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": (
        "imgtok.sample.commands.quickstart:quickstart",
        "train both models on 3,737 pictures, sample, report",
    ),
    "train tokenizer": ("imgtok.sample.commands.train:tokenizer", "train a tokenizer on a folder of images"),
    "train generator": ("imgtok.sample.commands.train:generator", "train a generator on a tokenizer's tokens"),
    "train posttrain": ("imgtok.sample.commands.train:posttrain", "train a decoder on what its generator draws"),
    "generate": ("imgtok.sample.commands.generate:generate", "draw images from a trained or published pair"),
    "edit": ("imgtok.sample.commands.edit:edit", "draw a part of a picture anew, or paint around it"),
    "reconstruct": ("imgtok.sample.commands.tokens:reconstruct", "images to tokens and back, with PSNR and SSIM"),
    "encode": ("imgtok.sample.commands.tokens:encode", "images to a folder of tokens"),
    "decode": ("imgtok.sample.commands.tokens:decode", "a folder of tokens to images"),
    "compress": ("imgtok.sample.commands.compress:compress", "a picture to a token file of a few bytes"),
    "decompress": ("imgtok.sample.commands.compress:decompress", "a token file to a picture"),
    "rate-distortion": (
        "imgtok.sample.commands.rate_distortion:rate_distortion",
        "token files beside JPEG, WebP and AVIF",
    ),
    "convert": ("imgtok.sample.commands.convert:convert", "a published weights file to our format"),
    "export": ("imgtok.sample.commands.export:export", "the models of a run alone, in half precision"),
    "presets": ("imgtok.sample.commands.presets:presets", "list what can be loaded or trained by name"),
    "strategies": ("imgtok.sample.commands.strategies:strategies", "list the ways to draw, and what each guarantees"),
    "evaluate tokenizer": ("imgtok.sample.commands.evaluate:tokenizer", "score reconstructions, codes and tokens"),
    "evaluate generator": ("imgtok.sample.commands.evaluate:generator", "draw images and score them (FID and others)"),
    "evaluate images": ("imgtok.sample.commands.evaluate:images", "score images from anywhere beside a reference"),
    "report": ("imgtok.sample.commands.report:report", "draw runs and evaluations as one HTML page"),
    "bench sample": ("imgtok.sample.commands.bench:sample", "speed of sampling beside transformers"),
    "bench tokenizer": ("imgtok.sample.commands.bench:tokenizer", "speed of encoding and decoding beside diffusers"),
}

# These get their words as they are: which options there are depends on the recipe.
TAKE_WORDS = ("train tokenizer", "train generator", "train posttrain")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(help_text())
        return 0 if words else 2
    if words[0] == "--version":
        from imgtok import __version__

        print(__version__)
        return 0
    name = next((name for name in (" ".join(words[:2]), words[0]) if name in COMMANDS), None)
    if name is None:
        return unknown(words)
    return run(name, words[len(name.split()) :])


def run(name: str, arguments: list[str]) -> int:
    import tyro

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for chatty in ("httpx", "urllib3", "PIL", "matplotlib"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        if name in TAKE_WORDS:
            find(name)(arguments)
        else:
            tyro.cli(find(name), prog=f"imgtok {name}", args=arguments)
    except (ValueError, ImportError, OSError) as error:
        print(f"imgtok {name}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt as stop:
        print(f"imgtok {name}: {str(stop) or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


def find(name: str) -> Callable[..., None]:
    module, _, function = COMMANDS[name][0].partition(":")
    return getattr(import_module(module), function)


def unknown(words: list[str]) -> int:
    import difflib

    parts = sorted(name.split()[1] for name in COMMANDS if name.startswith(f"{words[0]} "))
    if parts and words[1:2] in (["-h"], ["--help"]):
        print(help_text(words[0]))
        return 0
    if parts:
        print(f"imgtok: say which: {words[0]} {' or '.join(parts)}", file=sys.stderr)
        return 2
    close = difflib.get_close_matches(words[0], [name.split()[0] for name in COMMANDS], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "; see imgtok --help"
    print(f"imgtok: there is no command {words[0]!r}{hint}", file=sys.stderr)
    return 2


def help_text(only: str = "") -> str:
    chosen = {name: text for name, (_, text) in COMMANDS.items() if name.startswith(only)}
    width = max(map(len, chosen))
    rows = [f"  {name:<{width}}  {text}" for name, text in chosen.items()]
    return "\n".join([f"usage: {USAGE}", "", "commands:", *rows])


if __name__ == "__main__":
    sys.exit(main())
