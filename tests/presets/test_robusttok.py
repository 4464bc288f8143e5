"""RobustTok, XQ-GAN and ImageFolder: models written down from their description give what ours give."""

import argparse
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imgtok
from imgtok.hub import build_from_state
from imgtok.presets import PRESETS
from imgtok.presets.robusttok import convert_semantic, convert_tokenizer, semantic_config, tokenizer_config

WIDTH, HEADS = 16, 2
PLAIN = {
    "image_size": 16,
    "patch_size": 4,
    "dim": WIDTH,
    "depth": 2,
    "num_heads": HEADS,
    "mlp_ratio": 2.0,
    "codebook_size": 48,
    "codebook_dim": 6,
    "scales": [4],
    "num_latent_tokens": 16,
    "product_quant": 1,
}
VARIANTS = {
    "plain": {},
    "two-codes": {"product_quant": 2},
    "other-grid": {"num_latent_tokens": 9, "scales": [3]},
    "folded": {"product_quant": 2, "num_latent_tokens": 9, "scales": [1, 1, 2, 3]},
    "scales": {"scales": [1, 2, 3, 4]},
    "signs": {
        "product_quant": 2,
        "num_latent_tokens": 9,
        "scales": [1, 1, 2, 3],
        "codebook_size": 64,
        "binary": True,
    },
}
BLEND_OF_SCALE = (0, 1, 2, 3)  # of four scales and four blends


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(WIDTH))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, 1e-6), nn.LayerNorm(WIDTH, 1e-6)
        self.attn, self.ls1, self.ls2 = Attention(), Scale(), Scale()
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, 2 * WIDTH), "fc2": nn.Linear(2 * WIDTH, WIDTH)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1.gamma * self.attn(self.norm1(x))
        return x + self.ls2.gamma * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Backbone(nn.Module):
    """timm's vision transformer; a decoder's has no patches."""

    def __init__(self, patches: bool) -> None:
        super().__init__()
        self.cls_token, self.pos_embed = (nn.Parameter(torch.empty(1, n, WIDTH)) for n in (1, 17))
        if patches:
            self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, 4, stride=4)})
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH, 1e-6)

    def placed(self, tokens: Tensor) -> Tensor:
        """b n c -> with a class token in front, and positions added, which are resized to n places of a square."""
        side = math.isqrt(tokens.shape[1])
        grid = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        if side != 4:
            grid = F.interpolate(grid, (side, side), mode="bicubic", antialias=True)
        positions = torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
        return torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + positions

    def patches(self, images: Tensor) -> Tensor:
        return self.patch_embed["proj"](images).flatten(2).transpose(1, 2)

    def run(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Quantizer(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        self.scales, dim = config["scales"], config["codebook_dim"]
        self.binary = config.get("binary", False)
        if self.binary:
            self.register_buffer("scaler", torch.full((len(self.scales),), dim**-0.5))
        else:
            self.embedding = nn.Embedding(config["codebook_size"], dim)
        shape = (len(self.scales), config["codebook_size"]) if len(self.scales) > 1 else (config["codebook_size"],)
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(shape))
        if len(self.scales) > 1:
            blends = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(4))
            self.quant_resi = nn.ModuleDict({"qresi_ls": blends})

    def indices_and_codes(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """b d h w -> indices b n, and what the decoder reads, b d h w."""
        if self.binary:
            bits = torch.arange(64)[:, None] // 2 ** torch.arange(6) % 2
            rows, latent = (2.0 * bits - 1) * self.scaler[0], F.normalize(latent, dim=1)
        else:
            rows = self.embedding.weight
        unit = F.normalize(rows, dim=-1)

        def nearest(z: Tensor) -> Tensor:
            return (F.normalize(z, dim=1).permute(0, 2, 3, 1) @ unit.T).argmax(-1)

        if len(self.scales) == 1:
            return nearest(latent).flatten(1), unit[nearest(latent)].permute(0, 3, 1, 2)
        rest, total, found = latent, torch.zeros_like(latent), []
        for blend, side in zip(BLEND_OF_SCALE, self.scales, strict=True):
            found.append(nearest(F.interpolate(rest, (side, side), mode="area")))
            h = F.interpolate(rows[found[-1]].permute(0, 3, 1, 2), latent.shape[2:], mode="bicubic")
            h = 0.5 * h + 0.5 * self.quant_resi["qresi_ls"][blend](h)
            rest, total = rest - h, total + h
        return torch.cat([each.flatten(1) for each in found], dim=1), total


class Published(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        self.branches, self.count = config["product_quant"], config["num_latent_tokens"]
        dim = config["codebook_dim"]
        self.encoder, self.decoder = nn.Module(), nn.Module()
        self.encoder.model, self.decoder.model = Backbone(patches=True), Backbone(patches=False)
        self.encoder.latent_tokens = nn.Parameter(torch.empty(1, self.branches * self.count, WIDTH))
        self.encoder.lvl_embed = nn.Embedding(1 + self.branches, WIDTH)
        self.decoder.lvl_embed, self.decoder.mask_token = nn.Embedding(2, WIDTH), nn.Parameter(torch.empty(1, 1, WIDTH))
        self.decoder.to_pixel = nn.ModuleDict({"model": nn.Linear(WIDTH, 48)})
        self.encoder.register_buffer("lvl1LC", torch.zeros(3, dtype=torch.int64))
        self.quant_conv = nn.Conv2d(WIDTH, dim, 1)
        self.post_quant_conv = nn.Conv2d(self.branches * dim, WIDTH, 1)
        if self.branches == 1:
            self.quantize = Quantizer(config)
        else:
            self.quantizes = nn.ModuleList(Quantizer(config) for _ in range(self.branches))
            self.sem_linear = nn.Linear(WIDTH, dim)
        self.semantic_model = Backbone(patches=True)

    def latents(self, images: Tensor) -> list[Tensor]:
        """b d h w of each branch."""
        model, levels = self.encoder.model, self.encoder.lvl_embed.weight
        parts = [model.placed(model.patches(images)) + levels[0]]
        for i, tokens in enumerate(self.encoder.latent_tokens.split(self.count, dim=1)):
            parts.append(model.placed(tokens.expand(len(images), -1, -1))[:, 1:] + levels[1 + i])
        found = model.run(torch.cat(parts, dim=1))[:, 17:].transpose(1, 2)
        side = math.isqrt(self.count)
        return [self.quant_conv(part.unflatten(2, (side, side))) for part in found.split(self.count, dim=2)]

    def quantizers(self) -> list[Quantizer]:
        return [self.quantize] if self.branches == 1 else list(self.quantizes)

    def decode(self, codes: Tensor) -> Tensor:
        model, levels = self.decoder.model, self.decoder.lvl_embed.weight
        tokens = self.post_quant_conv(codes).flatten(2).transpose(1, 2)
        canvas = model.placed(self.decoder.mask_token.expand(len(codes), 16, -1)) + levels[0]
        x = model.run(torch.cat([canvas, model.placed(tokens) + levels[1]], dim=1))[:, 1:17]
        x = self.decoder.to_pixel["model"](x).reshape(-1, 4, 4, 4, 4, 3)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, 16, 16)


def published(variant: str) -> tuple[dict, Published]:
    """The configuration and a random model."""
    config, dice = PLAIN | VARIANTS[variant], torch.Generator().manual_seed(0)
    model = Published(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim == 1 or "token" in name else parameter[0].numel() ** -0.5
            offset = 1.0 if parameter.ndim == 1 and name.endswith(("weight", "gamma")) else 0.0
            parameter.copy_(offset + scale * torch.randn(parameter.shape, generator=dice))
    return config, model.eval()


def pictures(count: int) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_ours_is_the_published_model(variant):
    config, theirs = published(variant)
    images = pictures(2)
    latents = theirs.latents(images)
    for each, latent in zip(theirs.quantizers(), latents, strict=True):
        if not each.binary:
            each.embedding.weight[:8] = latent[0].flatten(1).T[:8]  # so that many codes are used
    ours = build_from_state(tokenizer_config(config), convert_tokenizer(theirs.state_dict()), variant).eval()
    torch.testing.assert_close(
        ours.latents(images).permute(0, 3, 1, 2), torch.cat(latents, dim=1), atol=2e-5, rtol=1e-4
    )
    found = [each.indices_and_codes(latent) for each, latent in zip(theirs.quantizers(), latents, strict=True)]
    indices = torch.stack([indices for indices, _ in found], dim=-1)
    indices = indices if theirs.branches > 1 else indices[..., 0]
    assert indices.unique().numel() > 5
    assert torch.equal(ours.encode(images), indices)
    pixels = theirs.decode(torch.cat([codes for _, codes in found], dim=1))
    torch.testing.assert_close(ours.decode(indices), pixels.clamp(-1, 1), atol=5e-5, rtol=1e-4)


@torch.no_grad()
def test_the_semantic_model_of_a_checkpoint_is_ours():
    config, theirs = published("plain")
    ours = build_from_state(semantic_config(config), convert_semantic(theirs.state_dict()), "").eval()
    images, model = pictures(2), theirs.semantic_model
    tokens = model.run(model.placed(model.patches(images)))
    torch.testing.assert_close(ours(images).whole, tokens[:, 0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(ours(images).patches.flatten(1, 2), tokens[:, 1:], atol=2e-5, rtol=1e-4)


def test_sizes_of_xqgan_are_those_of_its_configurations():
    for name, size, dim, index_shape in (
        ("xqgan-f16-4096", 4096, 64, ()),
        ("xqgan-f16-8192", 8192, 32, ()),
        ("xqgan-f16-vp2-16384", 16384, 32, (2,)),
        ("xqgan-f16-msb-4096", 4096, 12, (2,)),
        ("xqgan-f16-msb-16384", 16384, 14, (2,)),
    ):
        quantizer = PRESETS[name].config.quantizer
        branches = index_shape[0] if index_shape else 1
        assert (quantizer.codebook_size, quantizer.codebook_dim) == (size, branches * dim)
        assert quantizer.index_shape == index_shape
    assert PRESETS["xqgan-f16-vp2-4096"].config.layout.num_tokens == 256
    assert PRESETS["xqgan-f16-msb-4096"].config.layout.num_tokens == 286
    assert "have not been tried" in PRESETS["xqgan-f16-msb-4096"].note


def test_signs_that_do_not_make_the_codebook_are_refused():
    with pytest.raises(ValueError, match="5 signs are 32 codes, but codebook_size is 64"):
        tokenizer_config(PLAIN | VARIANTS["signs"] | {"codebook_dim": 5})


def test_a_number_of_latents_that_is_no_square_is_refused():
    with pytest.raises(ValueError, match="num_latent_tokens must be a square number, got 12"):
        tokenizer_config(PLAIN | {"num_latent_tokens": 12})


def test_averaged_weights_of_a_published_checkpoint_load(monkeypatch, tmp_path):
    config, theirs = published("plain")
    monkeypatch.setitem(PRESETS, "tiny", replace(PRESETS["robusttok-f16"], config=tokenizer_config(config)))
    averaged = {name: parameter.detach() for name, parameter in theirs.named_parameters()}  # without the buffers
    checkpoint = {"model": published("plain")[1].state_dict(), "ema": averaged, "args": argparse.Namespace(seed=0)}
    torch.save(checkpoint, tmp_path / "main-train.pt")
    tokenizer = imgtok.load("tiny", weights=tmp_path / "main-train.pt")
    assert torch.equal(tokenizer.quantizer.embedding.weight, theirs.quantize.embedding.weight)
    imgtok.save(tokenizer, tmp_path / "saved")
    assert torch.equal(imgtok.load(tmp_path / "saved").encode(pictures(1)), tokenizer.encode(pictures(1)))
