"""Recipes by name; one file per origin."""

from collections.abc import Callable

from imgtok.train.config import GeneratorTraining, TokenizerTraining
from imgtok.train.recipes import llamagen, quickstart, quickstart_var, var

TOKENIZERS: dict[str, Callable[[], TokenizerTraining]] = {
    **quickstart.TOKENIZERS,
    **quickstart_var.TOKENIZERS,
    **llamagen.TOKENIZERS,
    **var.TOKENIZERS,
}
GENERATORS: dict[str, Callable[[], GeneratorTraining]] = {
    **quickstart.GENERATORS,
    **quickstart_var.GENERATORS,
    **llamagen.GENERATORS,
    **var.GENERATORS,
}
