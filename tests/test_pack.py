"""A packed tokenizer decodes the same pictures and is the tokenizer itself in everything else."""

import torch

from imgtok.backbones.cnn import CNNConfig
from imgtok.nn.winograd import WinogradConv
from imgtok.pack import packed_tokenizer
from imgtok.quantizers.vector import VectorConfig
from imgtok.tokenizer import Tokenizer, TokenizerConfig

WIDE = CNNConfig(
    encoder_widths=(16, 16),
    decoder_widths=(128, 128),
    encoder_blocks=(1, 1),
    decoder_blocks=(1, 1),
    bottleneck=False,
    latent_channels=8,
    norm_groups=8,
)


def built(backbone: CNNConfig) -> Tokenizer:
    config = TokenizerConfig(image_size=64, backbone=backbone, quantizer=VectorConfig(codebook_size=16, codebook_dim=4))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return config.build().eval()


def test_a_packed_tokenizer_decodes_the_same_pictures() -> None:
    tokenizer = built(WIDE)
    copy = packed_tokenizer(tokenizer)
    codes = torch.randint(0, 16, (2, 32 * 32), generator=torch.Generator().manual_seed(0))
    expected, found = tokenizer.decode(codes), copy.decode(codes)
    used = [part.filters is not None for part in copy.modules() if isinstance(part, WinogradConv)]
    assert used == [True] * 4  # two blocks, of 32 x 32 and 64 x 64 places
    assert expected.std() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert not any(isinstance(part, WinogradConv) for part in tokenizer.modules())


def test_it_shares_the_weights_and_encodes_as_before() -> None:
    tokenizer = built(WIDE)
    copy = packed_tokenizer(tokenizer)
    assert {id(p) for p in copy.parameters()} == {id(p) for p in tokenizer.parameters()}
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert torch.equal(copy.encode(images), tokenizer.encode(images))


def test_outside_of_what_it_is_for_the_tokenizer_itself_comes_back() -> None:
    narrow = CNNConfig(
        encoder_widths=(16,), decoder_widths=(16,), encoder_blocks=(1,), decoder_blocks=(1,), norm_groups=4
    )
    for tokenizer in (built(WIDE).bfloat16(), built(WIDE).to("meta"), built(narrow)):
        assert packed_tokenizer(tokenizer) is tokenizer
