"""TiTok, One-D-Piece and the MaskGIT-VQGAN: models written down from their description give what ours give."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import imgtok
from imgtok.hub import build_from_state
from imgtok.nn.nested import NestedDropout
from imgtok.presets import PRESETS, maskgit, onedpiece, titok
from imgtok.tokens import SequenceLayout

CNN = {"channel_mult": [1, 2], "hidden_channels": 32, "num_res_blocks": 2, "z_channels": 8, "num_embeddings": 12}
VIT = {"width": 16, "layers": 2, "heads": 2, "mlp_ratio": 2.0}
TITOK = {
    "image_size": 8,
    "patch_size": 2,
    "num_latent_tokens": 5,
    "token_size": 4,
    "codebook_size": 48,
    "use_l2_norm": True,
    "quantize_mode": "vq",
    "encoder": VIT,
    "decoder": VIT | {"width": 24},
    "is_legacy": True,
    "pixel_decoder": CNN,
}
SINGLE = {"is_legacy": False, "pixel_decoder": None, "use_l2_norm": False}


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class Residual(nn.Module):
    """What widens adds a product of its own outcome."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, out, 3, padding=1, bias=False)
        self.norm2, self.conv2 = norm(out), nn.Conv2d(out, out, 3, padding=1, bias=False)
        if channels != out:
            self.nin_shortcut = nn.Conv2d(out, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(h) if hasattr(self, "nin_shortcut") else x)


def level(channels: int, out: int, blocks: int) -> nn.ModuleDict:
    return nn.ModuleDict({"block": nn.ModuleList(Residual(channels if i == 0 else out, out) for i in range(blocks))})


def through(blocks: nn.Module, x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


class CNNEncoder(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        widths = [config["hidden_channels"] * factor for factor in config["channel_mult"]]
        self.conv_in = nn.Conv2d(3, config["hidden_channels"], 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            level(before, width, config["num_res_blocks"])
            for before, width in zip([config["hidden_channels"], *widths], widths, strict=False)
        )
        self.mid = nn.ModuleList(Residual(widths[-1], widths[-1]) for _ in range(2))
        self.norm_out, self.conv_out = norm(widths[-1]), nn.Conv2d(widths[-1], config["z_channels"], 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for i, parts in enumerate(self.down):
            x = through(parts["block"], F.avg_pool2d(x, 2) if i else x)
        return self.conv_out(F.silu(self.norm_out(through(self.mid, x))))


class CNNDecoder(nn.Module):
    """`up` counts from the highest resolution."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        widths = [config["hidden_channels"] * factor for factor in config["channel_mult"]]
        self.conv_in = nn.Conv2d(config["z_channels"], widths[-1], 3, padding=1)
        self.mid = nn.ModuleList(Residual(widths[-1], widths[-1]) for _ in range(2))
        self.up = nn.ModuleList(
            level(below, width, config["num_res_blocks"])
            for width, below in zip(widths, [*widths[1:], widths[-1]], strict=True)
        )
        for parts, width in zip(self.up[1:], widths[1:], strict=True):
            parts["upsample_conv"] = nn.Conv2d(width, width, 3, padding=1)
        self.norm_out, self.conv_out = norm(widths[0]), nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = through(self.mid, self.conv_in(x))
        for parts in reversed(self.up):
            x = through(parts["block"], x)
            if "upsample_conv" in parts:
                x = parts["upsample_conv"](x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
        return self.conv_out(F.silu(self.norm_out(x)))


class PublishedVQGAN(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        self.encoder, self.decoder = CNNEncoder(config), CNNDecoder(config)
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(config["num_embeddings"], config["z_channels"])})


class PublishedBlock(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, hidden), "c_proj": nn.Linear(hidden, width)})

    def forward(self, x: Tensor) -> Tensor:
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class PublishedHalf(nn.Module):
    def __init__(self, config: dict, sizes: dict) -> None:
        super().__init__()
        width, patches = sizes["width"], (config["image_size"] // config["patch_size"]) ** 2
        self.class_embedding = nn.Parameter(torch.empty(1, width))
        self.positional_embedding = nn.Parameter(torch.empty(patches + 1, width))
        self.latent_token_positional_embedding = nn.Parameter(torch.empty(config["num_latent_tokens"], width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleList(
            PublishedBlock(width, sizes["heads"], sizes["mlp_ratio"]) for _ in range(sizes["layers"])
        )

    def run(self, grid: Tensor, latents: Tensor) -> Tensor:
        start = self.class_embedding.expand(len(grid), 1, -1)
        x = torch.cat([start, grid], dim=1) + self.positional_embedding
        x = torch.cat([x, latents + self.latent_token_positional_embedding[: latents.shape[1]]], dim=1)
        return self.ln_post(through(self.transformer, self.ln_pre(x)))


class PublishedTiTok(nn.Module):
    def __init__(self, config: dict) -> None:
        super().__init__()
        self.config, patch, size = config, config["patch_size"], config["token_size"]
        width, wide = config["encoder"]["width"], config["decoder"]["width"]
        self.latent_tokens = nn.Parameter(torch.empty(config["num_latent_tokens"], width))
        self.encoder = PublishedHalf(config, config["encoder"])
        self.encoder.patch_embed = nn.Conv2d(3, width, patch, stride=patch)
        self.encoder.conv_out = nn.Conv2d(width, size * (2 if config["quantize_mode"] == "vae" else 1), 1)
        self.decoder = PublishedHalf(config, config["decoder"])
        self.decoder.mask_token = nn.Parameter(torch.empty(1, 1, wide))
        self.decoder.decoder_embed = nn.Linear(size, wide)
        if config["quantize_mode"] == "vq":
            self.quantize = nn.ModuleDict({"embedding": nn.Embedding(config["codebook_size"], size)})
        pixels = config["pixel_decoder"]
        if pixels:
            last = nn.Conv2d(2 * wide, pixels["num_embeddings"], 1)
            self.decoder.ffn = nn.Sequential(nn.Conv2d(wide, 2 * wide, 1), nn.Tanh(), last)
            codes = nn.Embedding(pixels["num_embeddings"], pixels["z_channels"])
            self.pixel_quantize, self.pixel_decoder = nn.ModuleDict({"embedding": codes}), CNNDecoder(pixels)
        else:
            self.decoder.ffn = nn.Sequential(nn.Conv2d(wide, 3 * patch**2, 1))
            self.decoder.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    def latent(self, x: Tensor) -> Tensor:
        """Of a picture in [0, 1]: b d n."""
        grid = self.encoder.patch_embed(x).flatten(2).transpose(1, 2)
        count = self.config["num_latent_tokens"]
        x = self.encoder.run(grid, self.latent_tokens.expand(len(x), -1, -1))[:, -count:]
        maps = x.reshape(len(x), -1, count) if self.config["is_legacy"] else x.transpose(1, 2)
        return self.encoder.conv_out(maps[..., None])[..., 0]

    def decode(self, codes: Tensor) -> Tensor:
        """b n d -> a picture in about [0, 1]."""
        side = self.config["image_size"] // self.config["patch_size"]
        grid = self.decoder.mask_token.expand(len(codes), side**2, -1)
        x = self.decoder.run(grid, self.decoder.decoder_embed(codes))[:, 1 : 1 + side**2]
        x = self.decoder.ffn(x.transpose(1, 2).unflatten(2, (side, side)))
        if self.config["pixel_decoder"]:
            return self.pixel_decoder(
                torch.einsum("b v h w, v d -> b d h w", x.softmax(1), self.pixel_quantize["embedding"].weight)
            )
        p = self.config["patch_size"]
        x = x.reshape(len(x), p, p, 3, side, side).permute(0, 3, 4, 1, 5, 2)
        return self.decoder.conv_out(x.reshape(len(x), 3, side * p, side * p))


def randomised(model: nn.Module) -> nn.Module:
    """Random parameters with which activations stay near 1."""
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            offset = 1.0 if parameter.ndim == 1 else 0.0
            scale = 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(offset + scale * torch.randn(parameter.shape, generator=dice))
    return model.eval()


def pictures(count: int, side: int) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=5e-5, rtol=1e-4)


@torch.no_grad()
def test_ours_is_the_published_vqgan():
    config, theirs = CNN | {"image_size": 16}, randomised(PublishedVQGAN(CNN))
    ours = build_from_state(maskgit.tokenizer_config(config), maskgit.convert_tokenizer(theirs.state_dict()), "").eval()
    images, codes = pictures(2, 16), theirs.quantize["embedding"].weight
    latent = theirs.encoder((images + 1) / 2)
    close(ours.latents(images).permute(0, 3, 1, 2), latent)
    indices = torch.cdist(latent.flatten(2).transpose(1, 2), codes.expand(2, -1, -1)).argmin(-1)
    assert indices.unique().numel() > 2
    assert torch.equal(ours.encode(images), indices)
    picture = theirs.decoder(codes[indices].transpose(1, 2).unflatten(2, (8, 8)))
    close(ours.decode(indices), 2 * picture.clamp(0, 1) - 1)


@pytest.mark.parametrize("change", [{}, SINGLE], ids=["two-stages", "one-stage"])
@torch.no_grad()
def test_ours_is_the_published_titok(change):
    config, images = TITOK | change, pictures(2, 8)
    theirs = randomised(PublishedTiTok(config))
    latent, codes = theirs.latent((images + 1) / 2).transpose(1, 2), theirs.quantize["embedding"].weight
    codes[:10] = 1.01 * latent.flatten(0, 1)  # so that many are used
    ours = build_from_state(titok.tokenizer_config(config), titok.convert_tokenizer(theirs.state_dict()), "").eval()
    close(ours.latents(images), latent)
    if config["use_l2_norm"]:
        latent, codes = F.normalize(latent, dim=-1), F.normalize(codes, dim=-1)
    indices = torch.cdist(latent, codes.expand(2, -1, -1)).argmin(-1)
    assert indices.unique().numel() > 5
    assert torch.equal(ours.encode(images), indices)
    close(ours.decode(indices), 2 * theirs.decode(codes[indices]).clamp(0, 1) - 1)


@torch.no_grad()
def test_ours_is_the_published_titok_with_continuous_tokens():
    config = TITOK | SINGLE | {"quantize_mode": "vae"}
    theirs = randomised(PublishedTiTok(config))
    ours = build_from_state(titok.tokenizer_config(config), titok.convert_tokenizer(theirs.state_dict()), "").eval()
    images = pictures(2, 8)
    mean, _ = theirs.latent((images + 1) / 2).transpose(1, 2).chunk(2, dim=-1)
    tokens = ours.encode(images)
    close(tokens, mean)
    close(ours.decode(tokens), 2 * theirs.decode(mean).clamp(0, 1) - 1)


@torch.no_grad()
def test_one_d_piece_decodes_the_first_tokens_as_if_there_were_no_others():
    theirs = randomised(PublishedTiTok(TITOK))
    state = onedpiece.convert_tokenizer(theirs.state_dict())
    ours = build_from_state(onedpiece.tokenizer_config(TITOK), state, "").eval()
    indices = ours.encode(pictures(2, 8))[:, :3]
    codes = F.normalize(theirs.quantize["embedding"].weight, dim=-1)[indices]
    close(ours.decode(indices, SequenceLayout(3)), 2 * theirs.decode(codes).clamp(0, 1) - 1)
    assert ours.config.backbone.nested == NestedDropout(law="uniform", per="batch")


def test_a_published_file_loads(monkeypatch, tmp_path):
    theirs = randomised(PublishedTiTok(TITOK))
    row = replace(PRESETS["titok-l32"], config=titok.tokenizer_config(TITOK))
    monkeypatch.setitem(PRESETS, "tiny", row)
    torch.save(theirs.state_dict(), tmp_path / "titok.bin")
    tokenizer = imgtok.load("tiny", weights=tmp_path / "titok.bin")
    imgtok.save(tokenizer, tmp_path / "saved")
    again, images = imgtok.load(tmp_path / "saved"), pictures(1, 8)
    assert again.config == tokenizer.config
    assert torch.equal(again.reconstruct(images), tokenizer.reconstruct(images))


def test_misfits_of_a_published_file_are_listed_together(monkeypatch, tmp_path):
    state = randomised(PublishedTiTok(TITOK)).state_dict()
    for gone in ("encoder.ln_pre.bias", "decoder.ffn.2.bias", "pixel_decoder.mid.1.norm2.weight"):
        del state[gone]
    state["quantize.extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "titok.bin")
    monkeypatch.setitem(PRESETS, "tiny", replace(PRESETS["titok-l32"], config=titok.tokenizer_config(TITOK)))
    with pytest.raises(ValueError) as caught:
        imgtok.load("tiny", weights=tmp_path / "titok.bin")
    missing, unexpected = str(caught.value).split("; ")[-2:]
    assert missing == (
        "missing: backbone.decoder.head.cnn.mid.1.norm2.weight, backbone.decoder.head.to_logits.bias, "
        "backbone.encoder.vit.norm_in.bias"
    )
    assert unexpected == "unexpected: quantizer.extra"


def test_a_file_of_another_model_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(PRESETS, "tiny", replace(PRESETS["titok-l32"], config=titok.tokenizer_config(TITOK)))
    torch.save({"encoder.weight": torch.zeros(1)}, tmp_path / "other.bin")
    with pytest.raises(ValueError, match="is no published file of tiny: it lacks the parameter"):
        imgtok.load("tiny", weights=tmp_path / "other.bin")
