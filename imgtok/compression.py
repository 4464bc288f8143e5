"""Pictures of any size to token files and back."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from imgtok.data.transforms import to_float, to_uint8
from imgtok.flexible import Quality, decode_prefix, prefixes, shortest
from imgtok.hub import fingerprint
from imgtok.tokenfile import Coding, Predictor, TokenFile, check_limits, to_bytes
from imgtok.tokenizer import Tokenizer, size_of
from imgtok.tokens import SequenceLayout

MOST_TRAINED_AREAS = 4


class Compressor:
    """A tokenizer with its fingerprint, which is computed once.

    Pictures are uint8 3 h w of any size: what is missing to whole tokens is filled up by repeating the last row and
    column, and cut off again.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.identity = fingerprint(tokenizer)

    def encode(self, picture: Tensor) -> TokenFile:
        """All tokens of a picture. ValueError if it has more pixels than a token file holds."""
        self.check(size_of(picture))
        return self.file_of(picture, self.tokenizer.encode(self.filled_up(picture))[0])

    def encode_to_quality(self, picture: Tensor, target: float, quality: Quality) -> TokenFile:
        """The fewest first tokens with which the picture, without what fills it up, has the quality `target`."""
        self.check(size_of(picture))
        height, width = picture.shape[-2:]

        def inside(images: Tensor, originals: Tensor) -> Tensor:
            return quality(images[..., :height, :width], originals[..., :height, :width])

        found = shortest(self.tokenizer, self.filled_up(picture), target, inside)
        return self.file_of(picture, found.tokens[0, : int(found.lengths)])

    def encode_to_bytes(
        self, picture: Tensor, most: int, coding: Coding = "auto", predictor: Predictor | None = None
    ) -> TokenFile:
        """As many of the first tokens as fit into a file of `most` bytes; ValueError if the fewest do not."""
        whole = self.encode(picture)
        possible = prefixes(self.tokenizer.config, self.filled(whole.size))
        for count in reversed(possible):
            file = self.shortened(whole, count)
            if len(to_bytes(file, coding, predictor)) <= most:
                return file
        least = len(to_bytes(self.shortened(whole, possible[0]), coding, predictor))
        raise ValueError(f"{most} bytes are too few: the smallest file of this picture and tokenizer has {least}")

    def shortened(self, file: TokenFile, count: int) -> TokenFile:
        """The first `count` tokens alone; ValueError if the tokenizer does not decode so many."""
        possible = prefixes(self.tokenizer.config, self.filled(file.size))
        if count not in possible:
            every = len(possible) > 1 and len(possible) == possible[-1]
            told = f"1 to {possible[-1]}" if every else " or ".join(map(str, possible))
            raise ValueError(f"{count} tokens cannot be decoded alone with this tokenizer; for this picture use {told}")
        return replace(file, tokens=file.tokens[:count])

    def decode(self, file: TokenFile) -> Tensor:
        """uint8 3 h w. ValueError for the tokens of another tokenizer, and for fewer than can be decoded."""
        if file.tokenizer != self.identity:
            raise ValueError(
                f"the tokens are those of the tokenizer {file.tokenizer}, but this one is {self.identity}; "
                "decode with the tokenizer, configuration and weights alike, that made them"
            )
        self.check(file.size)
        size, config = self.filled(file.size), self.tokenizer.config
        expected = (config.layout_of(*size), config.quantizer.index_shape, config.quantizer.codebook_size)
        if (file.layout, file.index_shape, file.codebook_size) != expected:
            raise ValueError("the layout of the tokens is not the one that this tokenizer makes; the file is damaged")
        tokens = file.tokens[None].to(self.tokenizer.from_codes.weight.device)
        image = to_uint8(decode_prefix(self.tokenizer, tokens, size))[0].cpu()
        return image[:, : file.size[0], : file.size[1]].contiguous()

    def file_of(self, picture: Tensor, tokens: Tensor) -> TokenFile:
        config = self.tokenizer.config
        return TokenFile(
            tokenizer=self.identity,
            size=size_of(picture),
            layout=config.layout_of(*self.filled(size_of(picture))),
            index_shape=config.quantizer.index_shape,
            codebook_size=config.quantizer.codebook_size,
            tokens=tokens.cpu(),
        )

    def check(self, size: tuple[int, int]) -> None:
        """ValueError for pictures, height x width, that are too large when filled up.

        Tokens in a sequence are as many for any picture, so that a short file could ask for an endless one.
        """
        config, (height, width) = self.tokenizer.config, self.filled(size)
        layout = config.layout_of(height, width)
        check_limits((height, width), layout, config.quantizer.index_shape, config.quantizer.codebook_size)
        most = MOST_TRAINED_AREAS * config.image_size**2
        if isinstance(layout, SequenceLayout) and height * width > most:
            raise ValueError(
                f"a picture of {width} x {height} pixels: the {layout.num_tokens} tokens of this tokenizer stand for "
                f"at most {most:,}, {MOST_TRAINED_AREAS} times those it was trained on; scale it down (--size)"
            )

    def filled(self, size: tuple[int, int]) -> tuple[int, int]:
        """The next height and width that the tokenizer takes."""
        unit = self.tokenizer.config.backbone.reduction
        return (-(-size[0] // unit) * unit, -(-size[1] // unit) * unit)

    def filled_up(self, picture: Tensor) -> Tensor:
        """1 3 h w in [-1, 1], on the tokenizer's device."""
        (height, width), (full_height, full_width) = picture.shape[-2:], self.filled(size_of(picture))
        images = to_float(picture)[None].to(self.tokenizer.from_codes.weight.device)
        return F.pad(images, (0, full_width - width, 0, full_height - height), mode="replicate")
