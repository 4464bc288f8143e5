"""The published VQModel, written down plainly with its own parameter names, and ours loaded through the converter."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imgtok
from imgtok.hub import build_from_state
from imgtok.presets import PRESETS
from imgtok.presets.llamagen import convert_tokenizer, tokenizer_config
from imgtok.tokens import GridLayout


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class Residual(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = norm(out), nn.Conv2d(out, out, 3, padding=1)
        if channels != out:
            self.nin_shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class SelfAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (part(h).flatten(2) for part in (self.q, self.k, self.v))
        weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(x.shape[1]), dim=-1)  # b, query, key
        return x + self.proj_out((v @ weights.transpose(1, 2)).reshape(x.shape))


class Level(nn.Module):
    def __init__(self, channels: int, out: int, blocks: int, attention: bool, name: str | None) -> None:
        super().__init__()
        self.res = nn.ModuleList(Residual(channels if i == 0 else out, out) for i in range(blocks))
        self.attn = nn.ModuleList(SelfAttention(out) for _ in range(blocks if attention else 0))
        self.name = name
        if name == "downsample":
            self.downsample = nn.ModuleDict({"conv": nn.Conv2d(out, out, 3, stride=2)})
        elif name == "upsample":
            self.upsample = nn.ModuleDict({"conv": nn.Conv2d(out, out, 3, padding=1)})

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        if self.name == "downsample":
            return self.downsample["conv"](F.pad(x, (0, 1, 0, 1)))
        if self.name == "upsample":
            return self.upsample["conv"](x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
        return x


class Half(nn.Module):
    """Encoder or decoder: conv_in, then levels and middle in either order, then norm, swish, conv."""

    def __init__(self, inputs: int, first: int, steps: list, bottom: int, outputs: int, encoder: bool) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(inputs, first, 3, padding=1)
        self.conv_blocks = nn.ModuleList(Level(*step) for step in steps)
        self.mid = nn.ModuleList([Residual(bottom, bottom), SelfAttention(bottom), Residual(bottom, bottom)])
        last = bottom if encoder else steps[-1][1]
        self.norm_out, self.conv_out = norm(last), nn.Conv2d(last, outputs, 3, padding=1)
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        parts = [*self.conv_blocks, *self.mid] if self.encoder else [*self.mid, *self.conv_blocks]
        for part in parts:
            x = part(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class PublishedVQ(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        ch, blocks, z = config["ch"], config["num_res_blocks"], config["z_channels"]
        down = [ch * factor for factor in config["encoder_ch_mult"]]
        up = [ch * factor for factor in reversed(config["decoder_ch_mult"])]
        last = len(down) - 1
        encoder = [
            (ch if i == 0 else down[i - 1], width, blocks, i == last, None if i == last else "downsample")
            for i, width in enumerate(down)
        ]
        decoder = [
            (up[max(i - 1, 0)], width, blocks + 1, i == 0, None if i == last else "upsample")
            for i, width in enumerate(up)
        ]
        self.encoder = Half(3, ch, encoder, down[-1], z, encoder=True)
        self.decoder = Half(z, up[0], decoder, up[0], 3, encoder=False)
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(config["codebook_size"], config["codebook_embed_dim"])
        self.quantize.register_buffer("codebook_used", torch.zeros(64))
        self.quant_conv = nn.Conv2d(z, config["codebook_embed_dim"], 1)
        self.post_quant_conv = nn.Conv2d(config["codebook_embed_dim"], z, 1)
        self.l2_norm = config["codebook_l2_norm"]

    def normalize(self, x: Tensor, dim: int) -> Tensor:
        return x / x.norm(dim=dim, keepdim=True) if self.l2_norm else x

    def latent(self, images: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(images))

    def indices(self, latent: Tensor) -> Tensor:
        """b d h w -> b h w"""
        codes = self.normalize(self.quantize.embedding.weight, 1)
        return (self.normalize(latent, 1)[:, None] - codes[None, :, :, None, None]).square().sum(2).argmin(1)

    def decode(self, indices: Tensor) -> Tensor:
        codes = self.normalize(self.quantize.embedding.weight, 1)[indices]
        return self.decoder(self.post_quant_conv(codes.permute(0, 3, 1, 2)))


VARIANTS = {
    "as-published": {},
    "euclidean": {"codebook_l2_norm": False},
    "first-multiplier-2": {"encoder_ch_mult": [2, 1, 2], "decoder_ch_mult": [2, 1, 2]},
    "halves-differ": {"encoder_ch_mult": [1, 2, 3], "decoder_ch_mult": [2, 3, 1], "num_res_blocks": 1},
    "four-levels": {"encoder_ch_mult": [1, 2, 2, 4], "decoder_ch_mult": [1, 2, 2, 4], "num_res_blocks": 1},
    "one-level": {"encoder_ch_mult": [1], "decoder_ch_mult": [1]},
    "narrow-latent": {"z_channels": 5, "codebook_embed_dim": 3, "num_res_blocks": 3},
}


def published(variant: str) -> tuple[dict, PublishedVQ]:
    """The configuration and a random model whose activations stay near 1."""
    config = {
        "ch": 32,
        "encoder_ch_mult": [1, 2],
        "decoder_ch_mult": [1, 2],
        "num_res_blocks": 2,
        "z_channels": 16,
        "codebook_size": 48,
        "codebook_embed_dim": 8,
        "codebook_l2_norm": True,
    } | VARIANTS[variant]
    model, dice = PublishedVQ(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            offset = 1.0 if parameter.ndim == 1 else 0.0
            scale = 0.3 if parameter.ndim == 1 else 1 / math.sqrt(parameter[0].numel())
            parameter.copy_(offset + scale * torch.randn(parameter.shape, generator=dice))
    return config, model.eval()


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_ours_is_the_published_model(variant):
    config, theirs = published(variant)
    ours = build_from_state(
        tokenizer_config(config, image_size=16), convert_tokenizer(theirs.state_dict()), variant
    ).eval()
    r = ours.config.backbone.reduction
    assert r == 2 ** (len(config["encoder_ch_mult"]) - 1)
    images = torch.rand(2, 3, 2 * r, 3 * r, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latent = theirs.latent(images)
    torch.testing.assert_close(ours.latents(images).permute(0, 3, 1, 2), latent, atol=2e-5, rtol=1e-4)
    indices = theirs.indices(latent)
    assert torch.equal(ours.quantizer.nearest(latent.permute(0, 2, 3, 1)), indices)
    assert torch.equal(ours.encode(images), indices.flatten(1))
    tokens = torch.arange(2 * 4 * 3).reshape(2, 4, 3) * 7 % 48
    decoded = theirs.decode(tokens)
    torch.testing.assert_close(ours.decode_latents(ours.quantizer.codes(tokens)), decoded, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(
        ours.decode(tokens.flatten(1), GridLayout(4, 3)), decoded.clamp(-1, 1), atol=2e-5, rtol=1e-4
    )


@pytest.fixture
def preset(monkeypatch) -> tuple[str, PublishedVQ]:
    """The published row with small sizes."""
    from dataclasses import replace

    config, theirs = published("as-published")
    row = replace(PRESETS["llamagen-vq-f16"], config=tokenizer_config(config, image_size=16))
    monkeypatch.setitem(PRESETS, "tiny", row)
    return "tiny", theirs


def test_a_published_file_loads(preset, tmp_path, capsys):
    name, theirs = preset
    torch.save({"model": theirs.state_dict(), "steps": 1}, tmp_path / "vq.pt")
    tokenizer = imgtok.load(name, weights=tmp_path / "vq.pt")
    assert torch.equal(tokenizer.quantizer.embedding.weight, theirs.quantize.embedding.weight)
    assert "weights MIT" in capsys.readouterr().err


def test_misfits_of_a_published_file_are_listed_together(preset, tmp_path):
    name, theirs = preset
    state = theirs.state_dict()
    for gone in ("quant_conv.weight", "encoder.mid.1.k.weight"):
        del state[gone]
    state["quantize.extra"] = torch.zeros(1)
    state["post_quant_conv.weight"] = torch.zeros(16, 8, 3, 3)
    state["decoder.mid.1.q.weight"] = torch.zeros(64, 3, 1, 1)
    torch.save(state, tmp_path / "vq.pt")
    with pytest.raises(ValueError) as caught:
        imgtok.load(name, weights=tmp_path / "vq.pt")
    missing, unexpected, misshapen = str(caught.value).split("; ")[-3:]
    assert missing == "missing: backbone.decoder.mid.1.qkv.weight, backbone.encoder.mid.1.qkv.weight, to_codes.weight"
    for name in ("encoder.mid.1.q.weight", "encoder.mid.1.v.weight", "decoder.mid.1.q.weight", "quantizer.extra"):
        assert name in unexpected
    assert misshapen == "misshapen: from_codes.weight (16, 8, 3, 3) instead of (16, 8)"
