"""Pictures to token files and back, with tokenizers of every layout; prefixes, and as few tokens as a quality needs."""

from dataclasses import replace

import pytest
import torch

from imgtok.backbones.query import QueryConfig
from imgtok.backbones.vit import ViTConfig
from imgtok.compression import Compressor
from imgtok.data import to_float, to_uint8
from imgtok.flexible import decode_prefix, prefixes, shortest
from imgtok.metrics.image import psnr
from imgtok.nn.nested import NestedDropout
from imgtok.quantizers.factorized import ProductConfig
from imgtok.quantizers.gaussian import GaussianConfig
from imgtok.quantizers.residual import ResidualConfig
from imgtok.quantizers.vector import VectorConfig
from imgtok.quantizers.views import ScalesConfig
from imgtok.tokenfile import from_bytes, to_bytes
from imgtok.tokenizer import Tokenizer, TokenizerConfig
from imgtok.tokens import SequenceLayout

from .fuzz import outcomes
from .tiny import CNN

VIT = ViTConfig(width=16, depth=1, num_heads=2)
QUERY = QueryConfig(latents=(6,), patch_size=4, grid=(4, 4), encoder=VIT, decoder=VIT)
GRID = TokenizerConfig(
    image_size=16,
    backbone=CNN,
    quantizer=VectorConfig(codebook_size=32, codebook_dim=4),
)
STAGES = ResidualConfig(
    stage=VectorConfig(codebook_size=32, codebook_dim=4, l2_norm=False), view=ScalesConfig(scales=(1, 2, 4), blends=2)
)
CONFIGS = {
    "grid": GRID,
    "scales": replace(GRID, quantizer=STAGES),
    "sequence": replace(GRID, backbone=QUERY),
    "ordered": replace(GRID, backbone=replace(QUERY, nested=NestedDropout())),
    "pairs": replace(
        GRID, backbone=replace(QUERY, latents=(3, 3), branches=2), quantizer=ProductConfig(branch=GRID.quantizer)
    ),
    "scales of pairs": replace(
        GRID, backbone=replace(QUERY, latents=(4, 4), branches=2), quantizer=ProductConfig(branch=STAGES)
    ),
}
each_config = pytest.mark.parametrize("name", CONFIGS)
flexible = pytest.mark.parametrize("name", ["scales", "ordered", "scales of pairs"])


def shaken(config: TokenizerConfig, seed: int = 0) -> Tokenizer:
    """Random weights, strong enough for outputs that differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = config.build().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


@pytest.fixture(scope="module")
def compressors() -> dict[str, Compressor]:
    return {name: Compressor(shaken(config)) for name, config in CONFIGS.items()}


def picture(height: int = 16, width: int = 16, seed: int = 0) -> torch.Tensor:
    dice = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, height, width), generator=dice, dtype=torch.uint8)


def batch(count: int) -> torch.Tensor:
    return torch.stack([to_float(picture(seed=seed)) for seed in range(count)])


@each_config
@pytest.mark.parametrize("coding", ["packed", "coded"])
def test_a_file_holds_what_reconstructing_gives(compressors, name, coding):
    compressor, original = compressors[name], picture()
    file = from_bytes(to_bytes(compressor.encode(original), coding))
    expected = to_uint8(compressor.tokenizer.reconstruct(to_float(original)[None]))[0]
    assert torch.equal(compressor.decode(file), expected)


@each_config
@pytest.mark.parametrize(("height", "width"), [(15, 18), (1, 1), (16, 31)])
def test_pictures_of_any_size_come_back_in_it(compressors, name, height, width):
    compressor, original = compressors[name], picture(height, width)
    file = from_bytes(to_bytes(compressor.encode(original)))
    decoded = compressor.decode(file)
    assert decoded.shape == original.shape
    rows, columns = torch.arange(-(-height // 4) * 4), torch.arange(-(-width // 4) * 4)
    filled = original[:, rows.clamp(max=height - 1)][:, :, columns.clamp(max=width - 1)]
    expected = to_uint8(compressor.tokenizer.reconstruct(to_float(filled)[None]))[0]
    assert torch.equal(decoded, expected[:, :height, :width])


def test_which_prefixes_can_be_decoded():
    found = {name: prefixes(config, (16, 16)) for name, config in CONFIGS.items()}
    assert found == {
        "grid": (16,),
        "scales": (1, 5, 21),
        "sequence": (6,),
        "ordered": (1, 2, 3, 4, 5, 6),
        "pairs": (9,),
        "scales of pairs": (1, 5, 21),
    }


@flexible
def test_a_prefix_is_decoded_as_the_tokenizer_does(compressors, name):
    tokenizer, size = compressors[name].tokenizer, (16, 16)
    tokens = tokenizer.encode(batch(2))
    possible = prefixes(tokenizer.config, size)
    for place, count in enumerate(possible):
        if name == "ordered":
            expected = tokenizer.decode(tokens[:, :count], SequenceLayout(count))
        else:
            expected = tokenizer.decode(tokens, stages=place + 1)
        assert torch.equal(decode_prefix(tokenizer, tokens[:, :count], size), expected)
    assert torch.equal(decode_prefix(tokenizer, tokens, size), tokenizer.decode(tokens, size=size))


@flexible
def test_a_cut_file_is_decoded_from_the_whole_maps_or_tokens_that_are_left(compressors, name):
    compressor = compressors[name]
    file = compressor.encode(picture())
    data, possible = to_bytes(file, "packed"), prefixes(CONFIGS[name], (16, 16))
    counts = set()
    for end in range(len(data), 0, -1):
        try:
            cut = from_bytes(data[:end])
        except ValueError:
            break
        counts.add(len(cut.tokens))
        whole = max(count for count in possible if count <= len(cut.tokens))
        assert torch.equal(compressor.decode(cut), compressor.decode(compressor.shortened(file, whole)))
    assert counts >= {1, len(file.tokens)}


@pytest.mark.parametrize("name", ["grid", "sequence", "pairs"])
def test_a_cut_file_of_another_tokenizer_is_refused(compressors, name):
    compressor = compressors[name]
    file = compressor.encode(picture())
    with pytest.raises(ValueError, match="it can decode only all"):
        compressor.decode(from_bytes(to_bytes(file, "packed")[:-2]))
    with pytest.raises(ValueError, match="cannot be decoded alone"):
        compressor.shortened(file, 2)


def test_the_tokens_of_another_tokenizer_are_refused(compressors):
    file = compressors["grid"].encode(picture())
    with pytest.raises(ValueError, match=f"tokenizer {file.tokenizer}, but this one is"):
        Compressor(shaken(GRID, seed=1)).decode(file)
    with pytest.raises(ValueError, match="decode with the tokenizer"):
        compressors["scales"].decode(file)
    for changed in (
        replace(file, size=(16, 20)),
        replace(file, codebook_size=64),
        replace(file, layout=SequenceLayout(16)),
    ):
        with pytest.raises(ValueError, match="layout of the tokens is not the one"):
            compressors["grid"].decode(changed)


def test_pictures_that_are_too_large_and_vectors_are_refused(compressors):
    with pytest.raises(ValueError, match="stand for at most 1,024"):
        compressors["ordered"].encode(picture(33, 32))
    with pytest.raises(ValueError, match="stand for at most 1,024"):
        compressors["ordered"].decode(replace(compressors["ordered"].encode(picture()), size=(2000, 2000)))
    with pytest.raises(ValueError, match="token files hold 1 to"):
        compressors["grid"].encode(torch.zeros(3, 1, 1, dtype=torch.uint8).expand(3, 2049, 2048))
    with pytest.raises(ValueError, match="token files hold 1 to"):
        compressors["scales"].decode(replace(compressors["scales"].encode(picture()), size=(1, 1 << 22)))
    vectors = shaken(replace(GRID, backbone=QUERY, quantizer=GaussianConfig(dim=3)))
    with pytest.raises(ValueError, match="no tokens that are vectors"):
        Compressor(vectors).encode(picture())


@flexible
def test_the_shortest_prefix_is_found_for_each_picture(compressors, name, monkeypatch):
    """A picture's first pixel says how many tokens it needs, and each picture is decoded to their number."""
    tokenizer, possible = compressors[name].tokenizer, prefixes(CONFIGS[name], (16, 16))
    needs = torch.arange(1, possible[-1] + 4)
    images = batch(len(needs))
    images[:, 0, 0, 0] = needs / 100

    def decoded(tokenizer, tokens, size):
        return torch.full((len(tokens), 3, *size), tokens.shape[1] / 100)

    monkeypatch.setattr("imgtok.flexible.decode_prefix", decoded)
    found = shortest(tokenizer, images, 0.0, lambda images, originals: (images - originals)[:, 0, 0, 0])
    expected = [min((count for count in possible if count >= need), default=possible[-1]) for need in needs.tolist()]
    assert found.lengths.tolist() == expected
    assert torch.equal(found.tokens, tokenizer.encode(images))
    assert torch.equal(found.quality >= 0, needs <= possible[-1])


@flexible
def test_a_target_is_reached_whatever_the_quality_does(compressors, name):
    tokenizer, images = compressors[name].tokenizer, batch(5)
    everything = prefixes(tokenizer.config, (16, 16))[-1]
    for target in torch.linspace(4, 12, 9).tolist():
        found = shortest(tokenizer, images, target, psnr)
        assert bool(((found.quality >= target) | (found.lengths == everything)).all())
        for i, length in enumerate(found.lengths.tolist()):
            alone = psnr(decode_prefix(tokenizer, found.tokens[i : i + 1, :length], (16, 16)), images[i : i + 1])
            torch.testing.assert_close(alone[0], found.quality[i], atol=1e-3, rtol=0)


def test_bisection_takes_few_decodings(compressors):
    config = replace(GRID, backbone=replace(QUERY, latents=(64,), nested=NestedDropout()))
    tokenizer, calls = shaken(config), []

    def quality(decoded, originals):
        calls.append(len(decoded))
        return torch.zeros(len(decoded))

    assert int(shortest(tokenizer, batch(1), 1.0, quality).lengths) == 64
    assert len(calls) <= 7 + 1


@flexible
def test_as_many_tokens_as_fit(compressors, name):
    compressor, original = compressors[name], picture()
    possible = prefixes(CONFIGS[name], (16, 16))
    file = compressor.encode(original)
    lengths = [len(to_bytes(compressor.shortened(file, count))) for count in possible]
    for most in range(min(lengths), max(lengths) + 2):
        found = compressor.encode_to_bytes(original, most)
        fitting = [count for count, length in zip(possible, lengths, strict=True) if length <= most]
        assert len(found.tokens) == max(fitting)
    with pytest.raises(ValueError, match=f"the smallest file of this picture and tokenizer has {min(lengths)}"):
        compressor.encode_to_bytes(original, min(lengths) - 1)


def test_quality_is_that_of_the_picture_without_what_fills_it_up(compressors):
    compressor, original, seen = compressors["ordered"], picture(13, 18), []

    def quality(decoded, originals):
        seen.append((decoded.shape, torch.equal(to_uint8(originals)[0], original)))
        return psnr(decoded, originals)

    compressor.encode_to_quality(original, 8.0, quality)
    assert set(seen) == {((1, 3, 13, 18), True)}


@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_mutated_files_become_a_picture_or_an_error(compressors, count):
    files = [
        to_bytes(compressor.encode(picture()), coding)
        for compressor in compressors.values()
        for coding in ("packed", "coded")
    ]
    by_identity = {compressor.identity: compressor for compressor in compressors.values()}

    def decode(data: bytes) -> None:
        file = from_bytes(data)
        decoded = by_identity.get(file.tokenizer, compressors["grid"]).decode(file)
        assert decoded.dtype == torch.uint8
        assert decoded.shape == (3, *file.size)

    found = outcomes(count, decode, files)
    assert min(found.values()) > count / 10
    assert sum(found.values()) == count
