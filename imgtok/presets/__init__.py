"""Published tokenizers by name; one file per family."""

from imgtok.preset import Preset
from imgtok.presets import flextok, llamagen, maskgit, nfig, onedpiece, robusttok, titok, var
from imgtok.tokenizer import TokenizerConfig

PRESETS: dict[str, Preset[TokenizerConfig]] = {
    **llamagen.PRESETS,
    **var.PRESETS,
    **nfig.PRESETS,
    **maskgit.PRESETS,
    **titok.PRESETS,
    **onedpiece.PRESETS,
    **robusttok.PRESETS,
    **flextok.PRESETS,
}
