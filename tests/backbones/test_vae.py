"""The frozen autoencoder is diffusers' own, its latents are means, shifted and scaled."""

import pytest
import torch
from torch import Tensor

from imgtok.backbones.vae import KL, KLConfig

CONFIG = KLConfig(widths=(8, 16), blocks=1, latent_channels=4, norm_groups=4, scale=0.5, shift=0.25)


def pictures(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def vae() -> KL:
    torch.manual_seed(0)
    return CONFIG.build().eval()


def test_latents_are_shifted_and_scaled_means_and_decoding_undoes_that(vae):
    images = pictures(2, 3, 8, 12)
    latents = vae.encode(images)
    assert latents.shape == (2, 4, 8 // CONFIG.reduction, 12 // CONFIG.reduction)
    means = vae.model.encode(images).latent_dist.mean
    torch.testing.assert_close(latents, (means - 0.25) * 0.5)
    torch.testing.assert_close(vae.decode(latents), vae.model.decode(means).sample, atol=1e-5, rtol=0)
    assert torch.equal(vae.encode(images), latents)


def test_it_is_frozen_but_gradients_pass_through(vae):
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    latents = vae.encode(pictures(1, 3, 4, 4)).requires_grad_()
    vae.decode(latents).square().sum().backward()
    assert latents.grad is not None and (latents.grad != 0).any()


def test_any_autoencoder_of_diffusers_is_described():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    published = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        layers_per_block=2,
        latent_channels=3,
        norm_num_groups=4,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    ).eval()
    config = KLConfig.from_diffusers(published.config)
    assert (config.reduction, config.scale, config.shift, config.attention) == (4, 1.5305, 0.0609, False)
    ours, images = config.build().eval(), pictures(1, 3, 8, 8)
    ours.model.load_state_dict(published.state_dict())
    torch.testing.assert_close(ours.encode(images), (published.encode(images).latent_dist.mean - 0.0609) * 1.5305)


@pytest.mark.parametrize("wrong", [{"act_fn": "relu"}, {"down_block_types": ["AttnDownEncoderBlock2D"]}])
def test_one_with_other_parts_is_refused(wrong):
    with pytest.raises(ValueError, match="only DownEncoderBlock2D and 'silu' are known"):
        KLConfig.from_diffusers({"block_out_channels": [8], "layers_per_block": 1, "latent_channels": 4} | wrong)
