"""Recipes by name; one file per origin."""

from collections.abc import Callable

from imgtok.train.config import GeneratorTraining, TokenizerTraining
from imgtok.train.recipes import llamagen, quickstart

TOKENIZERS: dict[str, Callable[[], TokenizerTraining]] = {**quickstart.TOKENIZERS, **llamagen.TOKENIZERS}
GENERATORS: dict[str, Callable[[], GeneratorTraining]] = {**quickstart.GENERATORS, **llamagen.GENERATORS}
