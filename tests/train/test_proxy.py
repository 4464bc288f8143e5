"""Two stages: a teacher's codes are learned, then pixels with encoder and codes as they were; bit for bit on resume."""

import shutil
from dataclasses import replace

import pytest
import torch

import imgtok
from imgtok import hub
from imgtok.backbones.cnn import CNNConfig
from imgtok.backbones.query import CodeHeadConfig, QueryConfig
from imgtok.backbones.vit import ViTConfig
from imgtok.config import from_dict, to_dict
from imgtok.data import load as load_images
from imgtok.nn.nested import NestedDropout
from imgtok.presets import PRESETS
from imgtok.quantizers.vector import VectorConfig
from imgtok.tokenizer import TokenizerConfig
from imgtok.train.config import (
    ImageDataConfig,
    LoopConfig,
    OptimizerConfig,
    PictureLossConfig,
    TokenizerLossConfig,
    TokenizerTraining,
)
from imgtok.train.discriminators import BlurredPatchGANConfig
from imgtok.train.log import read
from imgtok.train.loop import optimizers_of
from imgtok.train.proxy import DecoderTraining, ProxyLossConfig, ProxyTraining, student_config
from imgtok.train.recipes import TOKENIZERS
from imgtok.train.run import train_tokenizer

VIT = ViTConfig(width=32, depth=2, num_heads=2)
STUDENT = TokenizerConfig(
    image_size=16,
    backbone=QueryConfig(
        latents=(8,), patch_size=4, grid=(4, 4), encoder=VIT, decoder=VIT, nested=NestedDropout(share=0.5)
    ),
    quantizer=VectorConfig(codebook_size=32, codebook_dim=4, learning="ema"),
    pixel_range=(0.0, 1.0),
)


CNN = CNNConfig(
    encoder_widths=(8, 16),
    decoder_widths=(8, 16),
    encoder_blocks=(1, 1),
    decoder_blocks=(1, 1),
    encoder_patch=2,
    decoder_patch=2,
    latent_channels=8,
    bottleneck=False,
    norm_groups=4,
)
TEACHER = TokenizerConfig(
    image_size=16, backbone=CNN, quantizer=VectorConfig(codebook_size=32, codebook_dim=4, learning="ema")
)
LOOP = LoopConfig(
    steps=100, batch_size=8, precision="no", ema_decay=0.9, log_every=10, evaluate_every=0, checkpoint_every=50
)


@pytest.fixture(scope="module")
def teacher(pictures, tmp_path_factory):
    """A tokenizer of 4 x 4 tokens that has learned a little."""
    training = TokenizerTraining(
        tokenizer=TEACHER,
        loop=replace(LOOP, steps=60),
        data=ImageDataConfig(source=str(pictures)),
        loss=TokenizerLossConfig(l1=1.0, l2=1.0, codebook=0.0),
        optimizer=OptimizerConfig(lr=3e-3, muon_lr=0.02),
    )
    folder = tmp_path_factory.mktemp("teacher")
    train_tokenizer(training, folder, device="cpu")
    return folder


@pytest.fixture
def first(pictures, teacher):
    return ProxyTraining(
        tokenizer=STUDENT,
        teacher=str(teacher),
        loop=LOOP,
        data=ImageDataConfig(source=str(pictures)),
        loss=ProxyLossConfig(codebook=0.0),
        optimizer=OptimizerConfig(lr=3e-3, muon_lr=0.02),
    )


def second_of(first: ProxyTraining, folder) -> DecoderTraining:
    return DecoderTraining(
        start=str(folder),
        loop=replace(first.loop, steps=40, checkpoint_every=20),
        data=first.data,
        loss=PictureLossConfig(l1=1.0, l2=1.0),
        optimizer=OptimizerConfig(lr=1e-3, muon_lr=0.005, weight_decay=0.1),
    )


def few(training, steps: int):
    return replace(training, loop=replace(training.loop, steps=steps, checkpoint_every=max(steps // 2, 1)))


def test_the_teachers_codes_are_learned_and_then_pixels_alone(first, pictures, teacher, tmp_path):
    outcome = train_tokenizer(few(first, 160), tmp_path / "first", device="cpu")
    rows = [row for row in read(tmp_path / "first" / "log.jsonl") if "loss" in row]
    last = [row["proxy"] for row in rows[-5:]]  # batches of eight differ by a third
    assert sum(last) / 5 < 0.6 * rows[0]["proxy"]
    assert {"commitment", "proxy_accuracy", "perplexity"} <= rows[0].keys()
    assert {"val_proxy", "val_proxy_accuracy", "val_psnr"} <= outcome.metrics.keys()
    begun, taught = imgtok.load(tmp_path / "first"), imgtok.load(teacher)
    for name, weight in taught.backbone.decoder.state_dict().items():
        assert torch.equal(begun.backbone.decoder.head.cnn.state_dict()[name], weight)
    assert begun.config.pixel_range == taught.config.pixel_range

    train_tokenizer(second_of(first, tmp_path / "first"), tmp_path / "second", device="cpu")
    rows = [row for row in read(tmp_path / "second" / "log.jsonl") if "loss" in row]
    assert "commitment" not in rows[0]
    ended, source = imgtok.load(tmp_path / "second"), load_images(str(pictures))
    images = torch.stack([source.image(i) for i in range(len(source))]) / 127.5 - 1
    assert torch.equal(ended.encode(images), begun.encode(images))
    before, after = begun.state_dict(), ended.state_dict()
    frozen = ("backbone.encoder.", "to_codes.", "quantizer.")
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert not [name for name in changed if name.startswith(frozen)]
    assert {"backbone.decoder.head.codebook", "backbone.decoder.head.cnn.conv_out.weight"} <= changed
    errors = [float((model.reconstruct(images) - images).square().mean()) for model in (begun, ended)]
    assert errors[1] < 0.9 * errors[0]


def test_a_teachers_expected_codes_are_decoded_as_the_teacher_does(first, teacher, tmp_path):
    """A student that is sure of the teacher's codes makes the teacher's pictures."""
    train_tokenizer(few(first, 2), tmp_path / "first", device="cpu")
    student, taught = imgtok.load(tmp_path / "first"), imgtok.load(teacher)
    indices = torch.randint(32, (2, 16), generator=torch.Generator().manual_seed(0))
    codes = student.backbone.decoder.head.codebook[indices].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    torch.testing.assert_close(student.backbone.decoder.head.cnn(codes).clamp(-1, 1), taught.decode(indices))


@pytest.mark.parametrize("stage", ["first", "second"])
def test_a_resumed_stage_ends_bit_for_bit_as_the_uninterrupted_one(first, stage, tmp_path):
    training = few(first, 6)
    if stage == "second":
        train_tokenizer(few(first, 2), tmp_path / "begun", device="cpu")
        training = few(second_of(first, tmp_path / "begun"), 6)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_tokenizer(training, whole, device="cpu")
    train_tokenizer(training, parts, device="cpu")
    (parts / "model.safetensors").unlink()
    checkpoints = sorted((parts / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    checkpoints[-1].unlink()
    train_tokenizer(training, parts, resume=True, device="cpu")
    ours, theirs = (imgtok.load(folder).state_dict() for folder in (parts, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", ["teacher", "start"])
def test_a_stage_is_not_resumed_with_another_model_under_the_same_path(first, teacher, name, tmp_path):
    shutil.copytree(teacher, tmp_path / "teacher")
    source, training = tmp_path / "teacher", few(replace(first, teacher=str(tmp_path / "teacher")), 2)
    if name == "start":
        train_tokenizer(training, tmp_path / "begun", device="cpu")
        source, training = tmp_path / "begun", few(second_of(first, tmp_path / "begun"), 2)
    train_tokenizer(training, tmp_path / "run", device="cpu")
    other = imgtok.load(source)
    other.from_codes.bias.data.add_(1)
    hub.save(other, source)
    with pytest.raises(ValueError, match=f"this {name} is not the one that"):
        train_tokenizer(training, tmp_path / "run", resume=True, device="cpu")


@pytest.mark.parametrize("stage", ["first", "second"])
def test_what_is_compiled_is_what_a_step_calls(first, stage, compiled, tmp_path):
    training = few(first, 2)
    if stage == "second":
        train_tokenizer(training, tmp_path / "begun", device="cpu")
        training = few(second_of(first, tmp_path / "begun"), 2)
    loop = replace(training.loop, evaluate_every=0, compile=True)
    train_tokenizer(replace(training, loop=loop), tmp_path / "run", device="cpu")
    assert len(compiled) == 2 and min(compiled) >= 2


def test_without_a_teacher_or_a_start_the_option_is_named(first, tmp_path):
    with pytest.raises(ValueError, match="add --teacher"):
        train_tokenizer(replace(first, teacher=""), tmp_path / "run", device="cpu")
    with pytest.raises(ValueError, match="add --start"):
        train_tokenizer(second_of(first, ""), tmp_path / "run", device="cpu")


def test_what_does_not_go_together_is_refused():
    smaller = replace(TEACHER, backbone=replace(CNN, encoder_patch=1, decoder_patch=1))
    with pytest.raises(ValueError, match="by a QueryConfig alone, got CNNConfig"):
        student_config(TEACHER, TEACHER)
    with pytest.raises(ValueError, match="the teacher must be a CNN with one codebook"):
        student_config(STUDENT, STUDENT)
    with pytest.raises(ValueError, match="the patches have 4 pixels a side, but the other tokenizer's codes 2"):
        student_config(STUDENT, smaller).build()


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name.endswith("-stage1")])
def test_published_recipes_learn_what_their_presets_are(name):
    """With its teacher's head, the first stage is the published model, but for what training alone needs."""
    preset, recipe = PRESETS[name.removesuffix("-stage1")], TOKENIZERS[name]()
    student = student_config(recipe.tokenizer, PRESETS[recipe.teacher].config)
    assert isinstance(student.backbone.head, CodeHeadConfig)
    assert replace(student, quantizer=preset.config.quantizer) == preset.config


def undecayed(model, optimizer: OptimizerConfig) -> set[str]:
    """Names of weights of two or more axes that weight decay leaves alone."""
    (adamw,) = optimizers_of(model, optimizer)
    alone = {id(parameter) for parameter in adamw.param_groups[1]["params"]}
    return {name for name, parameter in model.named_parameters() if parameter.ndim >= 2 and id(parameter) in alone}


def test_published_recipes_do_not_decay_tables_and_embeddings():
    """Names that hold latent_tokens, mask_token, embedding or embed, as the parameters are called there."""
    model = student_config(replace(STUDENT, quantizer=VectorConfig(codebook_size=32, codebook_dim=4)), TEACHER).build()
    tables = {
        "backbone.encoder.queries",
        "backbone.encoder.patches.positions",
        "backbone.decoder.canvas",
        "backbone.decoder.code_positions",
        "backbone.decoder.head.codebook",
        "quantizer.embedding.weight",
    }
    embeddings = {"backbone.encoder.patches.project.weight", "from_codes.weight"}
    assert undecayed(model, TOKENIZERS["titok-s128-stage1"]().optimizer) == tables | embeddings
    assert undecayed(model, TOKENIZERS["one-d-piece-s256-stage1"]().optimizer) == tables
    assert undecayed(model, OptimizerConfig(weight_decay=0.1)) == set()


def test_the_published_second_stage_compares_a_classifiers_answers():
    """MSE in [0, 1] + 0.1 of the answers + 0.01 of the adversary from step 20,000, whose schedule begins there."""
    recipe = TOKENIZERS["titok-stage2"]()
    loss = recipe.loss
    assert (4 * loss.l2, loss.perceptual, loss.classifier, loss.adversarial) == (1.0, 0.0, 0.1, 0.01)
    assert (loss.adversarial_start, recipe.discriminator_optimizer.start, loss.adaptive) == (20_000, 20_000, False)
    assert (loss.lecam, loss.lecam_form, loss.discriminator) == (0.001, "means", BlurredPatchGANConfig())
    assert recipe == from_dict(DecoderTraining, to_dict(recipe))
    one = TOKENIZERS["titok-bl64-vq8k"]().loss
    assert (one.perceptual, one.perceptual_network, one.classifier) == (1.0, "lpips-vgg", 0.1)  # 1.1 * (1, 0.1) / 1.1
