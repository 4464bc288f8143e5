"""Tokenizers with a flow for a decoder learn: of pixels, of an autoencoder's latents, with a teacher and without."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import imgtok
from imgtok.backbones.flow import FlowConfig
from imgtok.backbones.trunk import TrunkConfig
from imgtok.backbones.vae import KLConfig, PixelsConfig
from imgtok.config import from_dict, to_dict
from imgtok.data import load as load_images
from imgtok.data.transforms import to_float
from imgtok.nn.nested import NestedDropout
from imgtok.quantizers.scalar import ScalarConfig
from imgtok.quantizers.vector import VectorConfig
from imgtok.tokenizer import TokenizerConfig
from imgtok.train import flow
from imgtok.train.config import ImageDataConfig, LoopConfig, OptimizerConfig
from imgtok.train.data import ImageBatch
from imgtok.train.flow import FlowEvaluation, FlowLossConfig, FlowTask, FlowTraining
from imgtok.train.log import read
from imgtok.train.loop import Stopped
from imgtok.train.recipes import TOKENIZERS
from imgtok.train.run import train_tokenizer
from imgtok.train.teachers import FrozenTeacher

TRUNK = TrunkConfig(width=32, depth=2, head_dim=16)
BACKBONE = FlowConfig(
    vae=PixelsConfig(side=2), registers=4, patch_size=2, grid=(2, 2), encoder=replace(TRUNK, depth=1), decoder=TRUNK
)
KL = KLConfig(widths=(8, 8), blocks=1, latent_channels=4, norm_groups=4, scale=0.5, shift=0.1)


@pytest.fixture(scope="module")
def colours(tmp_path_factory) -> Path:
    """Three pictures of each of eight colours, 8 x 8."""
    root = tmp_path_factory.mktemp("colours")
    for i in range(24):
        colour = 255 * torch.tensor([i % 2, i // 2 % 2, i // 4 % 2])
        Image.fromarray(colour.expand(8, 8, 3).to(torch.uint8).numpy()).save(root / f"{i:02d}.png")
    return root


@pytest.fixture
def training(colours) -> FlowTraining:
    return FlowTraining(
        tokenizer=TokenizerConfig(image_size=8, backbone=BACKBONE, quantizer=ScalarConfig(levels=(5, 5, 5))),
        loop=LoopConfig(steps=6, batch_size=4, precision="no", log_every=1, evaluate_every=3, checkpoint_every=3),
        data=ImageDataConfig(source=str(colours)),
        optimizer=OptimizerConfig(lr=3e-3),
        evaluation=FlowEvaluation(images=3, lengths=(1, 2, 9), num_steps=2),
    )


def images_of(training: FlowTraining) -> Tensor:
    source = load_images(training.data.source)
    return to_float(torch.stack([source.image(i) for i in range(len(source))]))


def velocity_errors(model: imgtok.Tokenizer, images: Tensor, kept: tuple[int, ...]) -> list[float]:
    """From so many registers each, with the same noise and times; these are near the noise, which tells little."""
    dice, backbone = torch.Generator().manual_seed(1), model.backbone
    images = images.repeat(8, 1, 1, 1)
    maps, latents = backbone.maps(images), model.from_codes(model.quantizer.codes(model.encode(images)))
    noise, times = torch.randn(maps.shape, generator=dice), 0.9 + 0.1 * torch.rand(len(maps), generator=dice)
    return [float(backbone.loss(maps, latents, noise, times, torch.full((len(maps),), k))) for k in kept]


@torch.no_grad()
def test_the_loss_falls_and_the_first_register_tells_more_than_none(training, tmp_path):
    loop = replace(training.loop, steps=300, batch_size=16, evaluate_every=0, checkpoint_every=300, ema_decay=0.9)
    config = replace(training, loop=replace(loop, log_every=10), optimizer=OptimizerConfig(lr=3e-3, muon_lr=0.02))
    with torch.enable_grad():
        outcome = train_tokenizer(config, tmp_path / "run", device="cpu")
    rows = [row["velocity"] for row in read(tmp_path / "run" / "log.jsonl") if "velocity" in row]
    assert sum(rows[-4:]) < 0.6 * sum(rows[:4])
    none, one, every = velocity_errors(imgtok.load(tmp_path / "run"), images_of(training), (0, 1, 4))
    assert one < 0.8 * none and every < 0.8 * none  # 0.3 where this was written; 1 before training
    assert {"val_psnr", "val_psnr_1", "val_psnr_2", "val_velocity", "code_usage"} <= outcome.metrics.keys()
    assert "val_psnr_9" not in outcome.metrics  # there are four


def test_a_run_resumes_bit_for_bit(training, tmp_path, monkeypatch):
    whole = train_tokenizer(training, tmp_path / "whole", device="cpu").model.state_dict()
    monkeypatch.setattr("imgtok.train.loop.should_stop", lambda run, asked: run.step == 3)
    with pytest.raises(Stopped):
        train_tokenizer(training, tmp_path / "parts", device="cpu")
    monkeypatch.undo()
    resumed = train_tokenizer(training, tmp_path / "parts", device="cpu", resume=True).model.state_dict()
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_evaluation_repeats_itself_leaves_the_model_as_it_is_and_shows_rows_of_pictures(training):
    task = FlowTask(training, load_images(training.data.source))
    before = task.model.backbone.solver, task.model.backbone.guidance
    first = task.evaluate(task.model.eval())
    torch.rand(5)
    assert task.evaluate(task.model) == first
    assert (task.model.backbone.solver, task.model.backbone.guidance) == before
    assert task.preview(task.model).shape[0] == 3
    assert task.lengths == (1, 2, 4)


class Recorded:
    """A flow's loss that tells what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Tensor, Tensor]] = []

    def __call__(self, maps: Tensor, latents: Tensor, noise: Tensor, times: Tensor, kept: Tensor, block: int):
        self.asked.append((times, kept))
        return maps.sum() * 0, maps


def test_lengths_times_and_null_conditions_are_drawn_as_configured(training, monkeypatch):
    """4,000 images: each share within 5 standard deviations."""
    loss = FlowLossConfig(kept=NestedDropout(per="image"), null=0.25)
    task, recorded = FlowTask(replace(training, loss=loss)), Recorded()
    monkeypatch.setattr(task.model.backbone, "watched_loss", recorded)
    torch.manual_seed(0)
    task(ImageBatch(torch.zeros(4000, 3, 8, 8)), 0, torch.Generator().manual_seed(0))
    times, kept = recorded.asked[0]
    for length, share in [(0, 0.25), *[(k, 0.75 / 4) for k in (1, 2, 3, 4)]]:
        assert abs(float((kept == length).float().mean()) - share) < 5 * (share * (1 - share) / 4000) ** 0.5
    assert abs(float((times < 0.5).float().mean()) - 0.5) < 5 * 0.5 / 4000**0.5


def toy_teacher(name: str, weights: str | None) -> FrozenTeacher:
    """Colours at 2 x 2 places, and a constant."""
    network = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, 5, 1))
    nn.init.constant_(network[1].bias, 1.0)
    return FrozenTeacher(network, 5, 8)


def test_a_teacher_is_followed_and_stays_out_of_what_is_saved(training, tmp_path, monkeypatch):
    monkeypatch.setattr(flow, "patch_teacher", toy_teacher)
    loss = FlowLossConfig(alignment=0.5, teacher="efficientnet-lite0", alignment_hidden=16)
    loop = replace(training.loop, steps=40, evaluate_every=0, checkpoint_every=40)
    outcome = train_tokenizer(replace(training, loss=loss, loop=loop), tmp_path / "run", device="cpu")
    rows = [row["alignment"] for row in read(tmp_path / "run" / "log.jsonl") if "alignment" in row]
    assert sum(rows[-5:]) < 0.7 * sum(rows[:5])
    assert all(name.split(".")[0] in ("backbone", "to_codes", "from_codes") for name in outcome.model.state_dict())


def test_what_is_compiled_is_what_a_step_calls(training, compiled, tmp_path):
    loop = replace(training.loop, steps=2, evaluate_every=0, compile=True)
    train_tokenizer(replace(training, loop=loop), tmp_path / "run", device="cpu")
    assert len(compiled) == 1 + BACKBONE.decoder.depth and min(compiled) >= 2


def test_training_begins_where_levels_move(training):
    """Beyond the outer levels tanh is flat, and codes would stay what they are."""
    torch.manual_seed(0)
    task = FlowTask(training)
    images = images_of(training)
    assert task.model.latents(images).abs().max() < 0.5


def test_alignment_reaches_the_encoder_but_not_the_teacher(training, monkeypatch):
    monkeypatch.setattr(flow, "patch_teacher", toy_teacher)
    loss = FlowLossConfig(velocity=1.0, alignment=1.0, teacher="efficientnet-lite0", null=0.0)
    task = FlowTask(replace(training, loss=loss))
    with torch.no_grad():
        for block in task.model.backbone.decoder.blocks:  # which begins as the identity, where no register is heard
            block.modulation.bias.fill_(0.1)
    output = task(ImageBatch(images_of(training)[:4]), 0, torch.Generator().manual_seed(0))
    output.losses["alignment"].backward()
    assert task.model.backbone.encoder.registers.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in task.companions[0].parameters())
    assert task.model.backbone.decoder.to_patches.weight.grad is None  # behind the watched block


def test_an_autoencoder_is_read_checked_and_left_as_it_is(training, tmp_path):
    from imgtok.backbones.vae import autoencoder

    torch.manual_seed(0)
    published = autoencoder(KL)
    published.register_to_config(scaling_factor=0.5, shift_factor=0.1)
    published.save_pretrained(tmp_path / "vae")
    tokenizer = replace(training.tokenizer, backbone=replace(BACKBONE, vae=KL))
    config = replace(training, tokenizer=tokenizer, autoencoder=str(tmp_path / "vae"))
    config = replace(config, loop=replace(config.loop, steps=2, evaluate_every=0))
    outcome = train_tokenizer(config, tmp_path / "run", device="cpu")
    own = outcome.model.backbone.vae.model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in published.state_dict().items())
    other = replace(tokenizer, backbone=replace(BACKBONE, vae=replace(KL, scale=0.7)))
    with pytest.raises(ValueError, match=r"has scale 0\.5, not 0\.7"):
        FlowTask(replace(config, tokenizer=other))
    with pytest.raises(ValueError, match="holds no autoencoder"):
        FlowTask(replace(config, autoencoder=str(tmp_path / "nothing")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"autoencoder": "somewhere"}, "reads PixelsConfig, but autoencoder is 'somewhere'"),
        (
            {"loss": FlowLossConfig(alignment=1.0, teacher="dinov2-s", alignment_block=2)},
            "alignment_block must be 0 to 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(training, change, message):
    with pytest.raises(ValueError, match=message):
        replace(training, **change)


def test_other_quantizers_and_contradictions_are_refused(training):
    with pytest.raises(ValueError, match="not with FlowConfig and VectorConfig"):
        replace(
            training, tokenizer=replace(training.tokenizer, quantizer=VectorConfig(codebook_size=8, codebook_dim=4))
        )
    with pytest.raises(ValueError, match=r"alignment weight 0\.0 and teacher 'dinov2-l' contradict"):
        FlowLossConfig(teacher="dinov2-l")
    with pytest.raises(ValueError, match="null must be at least 0 and below 1, got 1"):
        FlowLossConfig(null=1.0)


@pytest.mark.parametrize("name", ["flextok-d12-d12", "flextok-d18-d18", "flextok-d18-d28", "quickstart-flow"])
def test_recipes_are_written_and_read_again(name):
    recipe = TOKENIZERS[name]()
    assert from_dict(FlowTraining, to_dict(recipe)) == recipe
