"""RobusTok's training: its recipes, its semantic loss, and a run with all of it that resumes bit for bit."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from imgtok.quantizers.factorized import ProductConfig
from imgtok.quantizers.sign import SignConfig
from imgtok.quantizers.vector import VectorConfig
from imgtok.train import checkpoint, semantic
from imgtok.train.augment import AugmentConfig
from imgtok.train.config import (
    OptimizerConfig,
    PerturbConfig,
    PictureLossConfig,
    TokenizerLossConfig,
    TokenizerTraining,
)
from imgtok.train.data import ImageBatch
from imgtok.train.discriminators import FrozenFeaturesConfig, PatchGANConfig
from imgtok.train.losses import contrastive, lecam_of_means, lecam_released
from imgtok.train.recipes import TOKENIZERS
from imgtok.train.run import train_tokenizer
from imgtok.train.schedules import learning_rate_share, perturbation_share
from imgtok.train.semantic import SemanticConfig, SemanticLoss
from imgtok.train.tasks import PictureAdversary, TokenizerTask
from imgtok.train.teachers import FrozenTeacher

RECIPES = ("robusttok", "robusttok-zero", "xqgan-4096", "xqgan-8192", "imagefolder", "xqgan-msb-4096")
EPOCH = 1_281_167 / 1024


def recipe(name: str) -> TokenizerTraining:
    found = TOKENIZERS[name]()
    assert isinstance(found, TokenizerTraining)
    return found


def pictures(count: int = 4, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def stand_in(width: int = 8) -> FrozenTeacher:
    """A teacher that needs no weights: each channel a fixed mixture of colours, at 4 x 4 places."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return FrozenTeacher(nn.Conv2d(3, width, 4, stride=4), width, 16)


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> FrozenTeacher:
    """Stands in for all others."""
    network = stand_in()
    monkeypatch.setattr(semantic, "whole_picture_teacher", lambda name, weights=None: network)
    return network


def with_semantic(training: TokenizerTraining, **changes: object) -> TokenizerTraining:
    loss = replace(training.loss, semantic=0.5, semantics=SemanticConfig(teacher="efficientnet-lite0", **changes))
    return replace(training, loss=loss)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_the_published_numbers(name: str) -> None:
    training = recipe(name)
    loss, loop = training.loss, training.loop
    assert (loss.l1, loss.l2, loss.perceptual, loss.adversarial, loss.semantic) == (0.0, 1.0, 1.0, 0.5, 0.1)
    assert (loss.commitment, loss.codebook, loss.lecam, loss.lecam_form) == (0.25, 1.0, 0.001, "released")
    assert loss.adaptive and loss.adversarial_loss == "hinge" and loss.discriminator == FrozenFeaturesConfig()
    assert (loop.batch_size, loop.ema_decay, loop.precision) == (1024, 0.9999, "bf16")
    assert loop.steps == pytest.approx(200 * EPOCH, abs=1)
    assert training.data.crop_scale == (1.0, 1.25) and training.data.flip
    begin = 64 if name == "xqgan-msb-4096" else 56
    assert loss.adversarial_start == training.discriminator_optimizer.start == pytest.approx(begin * EPOCH, abs=1)


@pytest.mark.parametrize("name", RECIPES)
def test_learning_rates_are_the_published_ones(name: str) -> None:
    training = recipe(name)
    steps, start = training.loop.steps, training.loss.adversarial_start
    for optimizer, highest, decay, first, warmup in (
        (training.optimizer, 2.4e-4, 5e-5 if name == "xqgan-msb-4096" else 0.0, 0, 1),
        (training.discriminator_optimizer, 8e-4, 5e-4, start, 4),
    ):
        assert (optimizer.lr, optimizer.betas) == (pytest.approx(highest), (0.9, 0.95))
        assert (optimizer.weight_decay, optimizer.max_grad_norm) == (decay, 0.0)
        top = first + round(warmup * EPOCH)
        rates = [optimizer.lr * learning_rate_share(optimizer, step, steps) for step in (first, top, steps - 1)]
        assert rates[0] < highest / 1000
        assert rates[1:] == [pytest.approx(highest, rel=1e-3), pytest.approx(5e-5, rel=1e-3)]


def test_only_robusttok_swaps_codes_as_published() -> None:
    """Rate, share and neighbours of the paper, whole until epoch 40, a half (or none) from epoch 120 on."""
    for name in RECIPES:
        perturb = recipe(name).perturb
        assert perturb.share == (0.1 if name.startswith("robusttok") else 0.0)
    for name, last in (("robusttok", 0.5), ("robusttok-zero", 0.0)):
        perturb, steps = recipe(name).perturb, recipe(name).loop.steps
        assert (perturb.rate, perturb.neighbours_of(4096)) == (1.0, 100)
        shares = [perturbation_share(perturb, round(epoch * EPOCH), steps) for epoch in (0, 40, 80, 120, 199)]
        assert shares == pytest.approx([1, 1, (1 + last) / 2, last, last], abs=1e-3)


def test_recipes_compare_what_the_published_ones_do() -> None:
    for name in RECIPES:
        semantics, folded = recipe(name).loss.semantics, name in ("imagefolder", "xqgan-msb-4096")
        assert (semantics.teacher, semantics.codes, semantics.scale) == ("dinov2-b", "clean", 1.0)
        assert semantics.branch == ("last" if folded else "all")
        assert semantics.normalize == (name == "xqgan-msb-4096")
    assert recipe("xqgan-msb-4096").loss.entropy == 0.1 and recipe("imagefolder").loss.entropy == 0


@pytest.mark.parametrize("name", ["var-vq-f16", "nfig-vq-f16"])
def test_vars_discriminator_reads_frozen_features_from_22_percent_on(name: str) -> None:
    training = recipe(name)
    assert training.loss.discriminator == FrozenFeaturesConfig()
    start, steps = training.discriminator_optimizer.start, training.loop.steps
    assert start == training.loss.adversarial_start == round(0.22 * steps)
    assert training.discriminator_optimizer.warmup_steps == round(0.02 * steps)


def test_the_schedule_of_a_late_discriminator_begins_with_it() -> None:
    late = OptimizerConfig(schedule="cosine", warmup_steps=4, start=10)
    plain = replace(late, start=0)
    for step in range(30):
        assert learning_rate_share(late, step + 10, 40) == learning_rate_share(plain, step, 30)
    assert learning_rate_share(late, 3, 40) == learning_rate_share(plain, 0, 30)


def test_the_semantic_loss_is_that_of_a_hand_computation(tokenizer_training: TokenizerTraining, teacher) -> None:
    """Mean code against what the tokenizer's own projection makes of the teacher's feature, weighted."""
    task = TokenizerTask(with_semantic(tokenizer_training)).eval()
    assert task.semantic is not None and task.semantic.project is None  # both are 8 wide
    images = pictures()
    output = task(ImageBatch(images), 0, torch.Generator())
    codes = task.model.quantizer.codes(task.model.quantizer.nearest(task.model.latents(images))).mean((1, 2))
    features = task.model.to_codes(teacher(images).mean((2, 3)))
    logits = codes @ features.T
    own = range(4)
    rows = -sum(logits.log_softmax(1)[i, i] for i in own) / 4
    columns = -sum(logits.log_softmax(0)[i, i] for i in own) / 4
    torch.testing.assert_close(output.losses["semantic"], 0.5 * (rows + columns) / 2)


def test_the_semantic_gradient_reaches_encoder_and_projection_but_not_the_teacher(tokenizer_training, teacher) -> None:
    task = TokenizerTask(with_semantic(tokenizer_training))
    task(ImageBatch(pictures()), 0, torch.Generator()).losses["semantic"].backward()
    assert task.model.to_codes.weight.grad.abs().sum() > 0
    assert all(p.grad is not None for p in task.model.backbone.encoder.parameters())
    assert all(p.grad is None for p in task.model.backbone.decoder.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert teacher in task.companions and not any("teacher" in name for name in task.state_dict())


def test_without_weight_there_is_no_teacher(tokenizer_training: TokenizerTraining) -> None:
    task = TokenizerTask(tokenizer_training)
    assert task.semantic is None and task.companions == ()
    assert "semantic" not in task(ImageBatch(pictures()), 0, torch.Generator()).losses


def test_semantic_codes_are_clean_unless_the_released_ones_are_wanted(tokenizer_training, teacher) -> None:
    perturb = PerturbConfig(share=1.0, neighbours=16, final=1.0)
    losses, state = {}, None
    torch.manual_seed(5)  # with some weights hardly any code is swapped for another
    for name, codes, swapping in (("none", "clean", False), ("clean", "clean", True), ("read", "read", True)):
        training = with_semantic(tokenizer_training, codes=codes)
        task = TokenizerTask(replace(training, perturb=perturb) if swapping else training).eval()
        state = state or task.model.state_dict()
        task.model.load_state_dict(state)
        loss = task(ImageBatch(pictures()), 0, torch.Generator().manual_seed(1)).losses["semantic"]
        task.zero_grad()
        loss.backward()
        losses[name] = loss.detach(), task.model.to_codes.weight.grad
    torch.testing.assert_close(losses["clean"], losses["none"])
    assert (losses["read"][0] - losses["none"][0]).abs() > 1e-4


def test_a_teacher_of_another_width_has_a_layer_of_its_own(tokenizer_training, monkeypatch) -> None:
    monkeypatch.setattr(semantic, "whole_picture_teacher", lambda name, weights=None: stand_in(width=5))
    loss = SemanticLoss(SemanticConfig(teacher="dinov2-s"), tokenizer_training.tokenizer)
    assert (loss.project.in_features, loss.project.out_features) == (5, 4)
    task = TokenizerTask(with_semantic(tokenizer_training))
    assert "semantic.project.weight" in task.state_dict()  # it goes on from checkpoints
    assert not any("project" in name for name in task.model.state_dict())


def test_of_several_branches_the_last_alone_can_be_compared(tokenizer_training, teacher) -> None:
    quantizer = ProductConfig(branch=VectorConfig(codebook_size=16, codebook_dim=3))
    tokenizer = replace(tokenizer_training.tokenizer, quantizer=quantizer)
    loss = SemanticLoss(SemanticConfig(teacher="dinov2-b", branch="last"), tokenizer)
    codes = torch.randn(4, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    found = loss(pictures(), codes, nn.Identity())
    features = loss.project(teacher(pictures()).mean((2, 3)))
    torch.testing.assert_close(found, contrastive(codes[..., 3:].mean((1, 2)), features))
    with pytest.raises(ValueError, match="VectorConfig has no branches; use all"):
        SemanticLoss(SemanticConfig(teacher="dinov2-b", branch="last"), tokenizer_training.tokenizer)


def test_weights_and_teachers_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"semantic weight 0\.1 and semantics.teacher 'none' contradict"):
        TokenizerLossConfig(semantic=0.1)
    with pytest.raises(ValueError, match=r"lecam_decay must be at least 0 and below 1, got 1\.0"):
        PictureLossConfig(lecam_decay=1.0)


@pytest.mark.parametrize(("form", "formula"), [("released", lecam_released), ("means", lecam_of_means)])
def test_lecam_compares_with_running_means_that_checkpoints_hold(form: str, formula: Callable[..., Tensor]) -> None:
    """Three steps by hand, from means of 0; TiTok's compares with those of the steps before."""
    config = PictureLossConfig(
        adversarial=1.0,
        lecam=2.0,
        lecam_form=form,
        lecam_decay=0.9,
        discriminator=PatchGANConfig(width=4, num_layers=1, norm="none"),
    )
    adversary = PictureAdversary(config)
    real, fake = pictures(), pictures().flip(0) * 0.5
    seen = [adversary.network(images) for images in (real, fake)]
    means = [torch.tensor(0.0), torch.tensor(0.0)]
    for _ in range(3):
        losses = adversary((real, fake), torch.Generator())
        before = means
        means = [0.9 * mean + 0.1 * logits.mean() for mean, logits in zip(means, seen, strict=True)]
        torch.testing.assert_close(losses["lecam"], 2 * formula(*seen, *(before if form == "means" else means)))
    assert {"mean_real", "mean_fake"} <= adversary.state_dict().keys()
    assert adversary.mean_real.item() == pytest.approx(means[0].item())
    assert not PictureAdversary(replace(config, lecam=0.0)).state_dict().keys() & {"mean_real", "mean_fake"}


def test_everything_at_once_resumes_bit_for_bit(tokenizer_training: TokenizerTraining, teacher, tmp_path) -> None:
    """Swapped codes, semantic loss, frozen features with augmentation, LeCam's means."""
    training = with_semantic(tokenizer_training)
    discriminator = FrozenFeaturesConfig(
        network="efficientnet-lite0", size=32, kernel=3, virtual_batch=2, augment=AugmentConfig()
    )
    loss = replace(
        training.loss,
        adversarial=0.1,
        adversarial_start=2,
        lecam=0.01,
        lecam_decay=0.5,
        discriminator=discriminator,
    )
    training = replace(training, loss=loss, perturb=PerturbConfig(share=0.5, neighbours=8))
    training = replace(training, discriminator_optimizer=OptimizerConfig(lr=1e-3, start=2, warmup_steps=2))
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train_tokenizer(training, whole, device="cpu")
    shutil.copytree(whole, resumed)
    (resumed / "checkpoints" / "step-00000008.pt").unlink()
    train_tokenizer(training, resumed, resume=True, device="cpu")
    one, two = (checkpoint.read(out / "checkpoints" / "step-00000008.pt") for out in (whole, resumed))
    for module, same in zip(one["modules"], two["modules"], strict=True):
        assert module.keys() == same.keys()
        assert all(torch.equal(module[name], same[name]) for name in module)
    means = [checkpoint.read(whole / "checkpoints" / f"step-0000000{step}.pt")["modules"][1] for step in (4, 8)]
    assert means[0]["mean_real"] != means[1]["mean_real"] != 0
    assert not any("companions" in name or "levels" in name for name in means[1])


@pytest.mark.parametrize("quantizer", [SignConfig(bits=4), ProductConfig(branch=SignConfig(bits=3))], ids=str)
def test_signs_train(tokenizer_training: TokenizerTraining, quantizer, tmp_path) -> None:
    loss = replace(tokenizer_training.loss, entropy=0.05, commitment=0.1)
    training = replace(
        tokenizer_training,
        tokenizer=replace(tokenizer_training.tokenizer, quantizer=quantizer),
        loop=replace(tokenizer_training.loop, steps=60, batch_size=8, evaluate_every=0, checkpoint_every=60),
        loss=loss,
    )
    outcome = train_tokenizer(training, tmp_path / "run", device="cpu")
    assert math.isfinite(outcome.metrics["val_psnr"]) and outcome.metrics["val_psnr"] > 9
    assert outcome.metrics["code_usage"] > 0.2
