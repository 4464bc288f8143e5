"""Recipes by name; one file per origin."""

from collections.abc import Callable

from imgtok.train.config import TokenizerTraining
from imgtok.train.generator_config import GeneratorTraining
from imgtok.train.recipes import llamagen, nfig, quickstart, quickstart_var, titok, var

TOKENIZERS: dict[str, Callable[[], TokenizerTraining]] = {
    **quickstart.TOKENIZERS,
    **quickstart_var.TOKENIZERS,
    **llamagen.TOKENIZERS,
    **var.TOKENIZERS,
    **nfig.TOKENIZERS,
}
GENERATORS: dict[str, Callable[[], GeneratorTraining]] = {
    **quickstart.GENERATORS,
    **quickstart_var.GENERATORS,
    **llamagen.GENERATORS,
    **var.GENERATORS,
    **nfig.GENERATORS,
    **titok.GENERATORS,
}
