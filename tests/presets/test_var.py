"""The published VQVAE, written down plainly with its own parameter names, and ours loaded through the converter."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imgtok
from imgtok.hub import build_from_state
from imgtok.presets import PRESETS
from imgtok.presets.var import convert_tokenizer, tokenizer_config
from imgtok.tokens import ScaleLayout


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class Residual(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = norm(out), nn.Conv2d(out, out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + self.nin_shortcut(x)


class SelfAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.qkv = norm(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, dim=1)
        weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(x.shape[1]), dim=-1)  # b, query, key
        return x + self.proj_out((v @ weights.transpose(1, 2)).reshape(x.shape))


def level(channels: int, out: int, blocks: int, attention: bool, resample: str | None) -> nn.Module:
    parts = nn.Module()
    parts.block = nn.ModuleList(Residual(channels if i == 0 else out, out) for i in range(blocks))
    parts.attn = nn.ModuleList(SelfAttention(out) for _ in range(blocks if attention else 0))
    if resample:
        conv = nn.Conv2d(out, out, 3, stride=2) if resample == "downsample" else nn.Conv2d(out, out, 3, padding=1)
        parts.add_module(resample, nn.ModuleDict({"conv": conv}))
    return parts


def middle(channels: int) -> nn.ModuleDict:
    parts = {"block_1": Residual(channels, channels), "attn_1": SelfAttention(channels)}
    return nn.ModuleDict(parts | {"block_2": Residual(channels, channels)})


def run(parts: nn.Module, x: Tensor) -> Tensor:
    for i, block in enumerate(parts.block):
        x = block(x)
        x = parts.attn[i](x) if len(parts.attn) else x
    if hasattr(parts, "downsample"):
        x = parts.downsample["conv"](F.pad(x, (0, 1, 0, 1)))
    if hasattr(parts, "upsample"):
        x = parts.upsample["conv"](x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    return x


class PublishedVQVAE(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        ch, blocks, z = config["ch"], config["num_res_blocks"], config["z_channels"]
        widths = [ch * factor for factor in config["ch_mult"]]
        last, bottom = len(widths) - 1, widths[-1]
        self.encoder, self.decoder, self.quantize = nn.Module(), nn.Module(), nn.Module()
        self.encoder.conv_in, self.decoder.conv_in = nn.Conv2d(3, ch, 3, padding=1), nn.Conv2d(z, bottom, 3, padding=1)
        self.encoder.down = nn.ModuleList(
            level([ch, *widths][i], width, blocks, i == last, None if i == last else "downsample")
            for i, width in enumerate(widths)
        )
        self.decoder.up = nn.ModuleList(  # by resolution: the first is the highest and comes last
            level([*widths, bottom][i + 1], width, blocks + 1, i == last, "upsample" if i else None)
            for i, width in enumerate(widths)
        )
        self.encoder.mid, self.decoder.mid = middle(bottom), middle(bottom)
        self.encoder.norm_out, self.encoder.conv_out = norm(bottom), nn.Conv2d(bottom, z, 3, padding=1)
        self.decoder.norm_out, self.decoder.conv_out = norm(widths[0]), nn.Conv2d(widths[0], 3, 3, padding=1)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(z, z, 3, padding=1), nn.Conv2d(z, z, 3, padding=1)
        self.sides, share = config["patch_nums"], config["share_quant_resi"]
        self.quantize.embedding = nn.Embedding(config["vocab_size"], z)
        self.quantize.register_buffer("ema_vocab_hit_SV", torch.zeros(len(self.sides), config["vocab_size"]))
        convs = nn.ModuleList(nn.Conv2d(z, z, 3, padding=1) for _ in range(share or len(self.sides)))
        self.blend_of_side = [0] * len(self.sides) if share == 1 else config["blends"]
        self.blends = (convs,)  # in a tuple: the names below are the published ones
        if share == 0:
            self.quantize.quant_resi = convs
        elif share == 1:
            self.quantize.quant_resi = nn.ModuleDict({"qresi": convs[0]})
        else:
            self.quantize.quant_resi = nn.ModuleDict({"qresi_ls": convs})

    def latent(self, x: Tensor) -> Tensor:
        x = self.encoder.conv_in(x)
        for parts in self.encoder.down:
            x = run(parts, x)
        for part in self.encoder.mid.values():
            x = part(x)
        return self.quant_conv(self.encoder.conv_out(F.silu(self.encoder.norm_out(x))))

    def indices_and_sum(self, latent: Tensor) -> tuple[list[Tensor], Tensor]:
        rest, total, found, codes = latent, torch.zeros_like(latent), [], self.quantize.embedding.weight
        for k, side in enumerate(self.sides):
            small = F.interpolate(rest, (side, side), mode="area")
            found.append((small[:, None] - codes[None, :, :, None, None]).square().sum(2).argmin(1))
            h = codes[found[-1]].permute(0, 3, 1, 2)
            h = F.interpolate(h, latent.shape[2:], mode="bicubic") if side < latent.shape[2] else h
            h = 0.5 * h + 0.5 * self.blends[0][self.blend_of_side[k]](h)
            rest, total = rest - h, total + h
        return found, total

    def decode(self, total: Tensor) -> Tensor:
        x = self.decoder.conv_in(self.post_quant_conv(total))
        for part in self.decoder.mid.values():
            x = part(x)
        for parts in reversed(self.decoder.up):
            x = run(parts, x)
        return self.decoder.conv_out(F.silu(self.decoder.norm_out(x)))


VARIANTS = {
    "as-published": {},
    "one-blend": {"share_quant_resi": 1},
    "own-blends": {"share_quant_resi": 0, "blends": [0, 1, 2, 3, 4, 5]},
    "widths": {"ch_mult": [2, 1, 3], "num_res_blocks": 1, "share_quant_resi": 2, "blends": [0, 0, 0, 1, 1, 1]},
}


def published(variant: str) -> tuple[dict, PublishedVQVAE]:
    """The configuration and a random model whose activations stay near 1."""
    config = {
        "ch": 32,
        "ch_mult": [1, 2],
        "num_res_blocks": 2,
        "z_channels": 8,
        "vocab_size": 48,
        "quant_conv_ks": 3,
        "quant_resi": 0.5,
        "share_quant_resi": 4,
        "patch_nums": [1, 2, 3, 4, 5, 7],
        "blends": [0, 0, 1, 2, 3, 3],
    } | VARIANTS[variant]
    model, dice = PublishedVQVAE(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            offset = 1.0 if parameter.ndim == 1 else 0.0
            scale = 0.3 if parameter.ndim == 1 else 1 / math.sqrt(parameter[0].numel())
            parameter.copy_(offset + scale * torch.randn(parameter.shape, generator=dice))
        for convolution in model.blends[0]:
            convolution.bias.zero_()
    return config, model.eval()


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_ours_is_the_published_model(variant):
    config, theirs = published(variant)
    ours = build_from_state(tokenizer_config(config), convert_tokenizer(theirs.state_dict()), variant).eval()
    side = 7 * 2 ** (len(config["ch_mult"]) - 1)
    assert ours.config.image_size == side
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latent = theirs.latent(images)
    torch.testing.assert_close(ours.latents(images).permute(0, 3, 1, 2), latent, atol=2e-5, rtol=1e-4)
    indices, total = theirs.indices_and_sum(latent)
    assert [each.shape[1:] for each in indices] == [(n, n) for n in config["patch_nums"]]
    for own, their in zip(ours.quantizer.nearest(latent.permute(0, 2, 3, 1)), indices, strict=True):
        assert torch.equal(own, their)
    tokens = torch.cat([each.flatten(1) for each in indices], dim=1)
    assert tokens.unique().numel() > 10
    assert torch.equal(ours.encode(images), tokens)
    torch.testing.assert_close(ours.quantizer.codes(indices).permute(0, 3, 1, 2), total, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(ours.decode(tokens), theirs.decode(total).clamp(-1, 1), atol=5e-5, rtol=1e-4)


def test_an_unpublished_distance_is_refused():
    with pytest.raises(ValueError, match="using_znorm"):
        tokenizer_config(published("as-published")[0] | {"using_znorm": True})


def test_a_model_without_blends_has_none():
    config = tokenizer_config(published("as-published")[0] | {"quant_resi": 0.0})
    assert config.quantizer.view.blends == 0


def test_both_published_sizes_have_their_scales():
    config = PRESETS["var-vq-f16"].config
    assert config.layout.num_tokens == 680
    assert config.layout_of(512, 512) == ScaleLayout(tuple((s, s) for s in (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)))
    assert config.layout_of(512, 512).num_tokens == 2240
    assert config.layout_of(256, 384).sizes[-2:] == ((13, 20), (16, 24))


@pytest.fixture
def preset(monkeypatch) -> tuple[str, PublishedVQVAE]:
    """The published row with small sizes."""
    config, theirs = published("as-published")
    monkeypatch.setitem(PRESETS, "tiny", replace(PRESETS["var-vq-f16"], config=tokenizer_config(config)))
    return "tiny", theirs


def test_a_published_file_loads(preset, tmp_path, capsys):
    name, theirs = preset
    torch.save(theirs.state_dict(), tmp_path / "vae.pth")
    tokenizer = imgtok.load(name, weights=tmp_path / "vae.pth")
    assert torch.equal(tokenizer.quantizer.stages[0].embedding.weight, theirs.quantize.embedding.weight)
    assert "weights MIT" in capsys.readouterr().err
    imgtok.save(tokenizer, tmp_path / "saved")
    again = imgtok.load(tmp_path / "saved")
    assert again.config == tokenizer.config
    images = torch.rand(1, 3, 14, 14, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert torch.equal(again.reconstruct(images), tokenizer.reconstruct(images))


def test_misfits_of_a_published_file_are_listed_together(preset, tmp_path):
    name, theirs = preset
    state = theirs.state_dict()
    for gone in ("quant_conv.weight", "decoder.up.0.block.1.norm1.weight", "quantize.quant_resi.qresi_ls.3.bias"):
        del state[gone]
    state["quantize.extra"] = torch.zeros(1)
    state["encoder.mid.attn_1.qkv.weight"] = torch.zeros(64, 64, 1, 1)
    torch.save(state, tmp_path / "vae.pth")
    with pytest.raises(ValueError) as caught:
        imgtok.load(name, weights=tmp_path / "vae.pth")
    missing, unexpected, misshapen = str(caught.value).split("; ")[-3:]
    assert missing == (
        "missing: backbone.decoder.levels.1.blocks.1.norm1.weight, quantizer.view.blends.3.bias, to_codes.weight"
    )
    assert unexpected == "unexpected: quantizer.extra"
    assert misshapen == ("misshapen: backbone.encoder.mid.1.qkv.weight (64, 64, 1, 1) instead of (192, 64, 1, 1)")
