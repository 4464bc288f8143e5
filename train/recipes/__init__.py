"""Recipes by name; one file per origin."""

from collections.abc import Callable

from imgtok.train.config import TokenizerTraining
from imgtok.train.flow import FlowTraining
from imgtok.train.generator_config import GeneratorTraining
from imgtok.train.posttrain import PostTraining
from imgtok.train.proxy import DecoderTraining, ProxyTraining
from imgtok.train.recipes import (
    emoji64,
    flextok,
    llamagen,
    nfig,
    onedpiece,
    posttrain,
    quickstart,
    quickstart_1d,
    quickstart_var,
    robusttok,
    titok,
    var,
)

AnyTokenizerTraining = TokenizerTraining | FlowTraining | ProxyTraining | DecoderTraining

TOKENIZERS: dict[str, Callable[[], AnyTokenizerTraining]] = {
    **quickstart.TOKENIZERS,
    **quickstart_var.TOKENIZERS,
    **quickstart_1d.TOKENIZERS,
    **emoji64.TOKENIZERS,
    **llamagen.TOKENIZERS,
    **var.TOKENIZERS,
    **nfig.TOKENIZERS,
    **robusttok.TOKENIZERS,
    **flextok.FLOWS,
    **titok.TOKENIZERS,
    **quickstart_1d.PROXIES,
    **titok.PROXIES,
    **onedpiece.PROXIES,
    **quickstart_1d.DECODERS,
    **titok.DECODERS,
    **onedpiece.DECODERS,
}
GENERATORS: dict[str, Callable[[], GeneratorTraining]] = {
    **quickstart.GENERATORS,
    **quickstart_var.GENERATORS,
    **emoji64.GENERATORS,
    **llamagen.GENERATORS,
    **var.GENERATORS,
    **nfig.GENERATORS,
    **titok.GENERATORS,
    **flextok.GENERATORS,
}
POST_TRAININGS: dict[str, Callable[[], PostTraining]] = posttrain.POST_TRAININGS
