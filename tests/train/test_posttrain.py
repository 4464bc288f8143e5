"""Post-training promises: the share of own tokens, for every kind of generator; only the decoder moves; it resumes."""

import shutil
from dataclasses import replace

import pytest
import torch

import imgtok
from imgtok import hub
from imgtok.backbones.query import QueryConfig
from imgtok.backbones.vit import ViTConfig
from imgtok.data import load as load_images
from imgtok.generators.condition import Label, LabelConditionConfig, TextConditionConfig, length_label
from imgtok.nn.nested import NestedDropout
from imgtok.quantizers.gaussian import GaussianConfig
from imgtok.quantizers.residual import ResidualConfig
from imgtok.quantizers.views import ScalesConfig
from imgtok.sample.guidance import Guidance
from imgtok.sample.images import SamplerConfig, generate_tokens
from imgtok.sample.noise import image_keys
from imgtok.tokencache import TokenCache, encode_source
from imgtok.train import checkpoint, posttrain_run
from imgtok.train.best import Best
from imgtok.train.config import LoopConfig, OptimizerConfig, PictureLossConfig
from imgtok.train.generator_config import MaskedSizes, NextScaleSizes, TransformerSizes
from imgtok.train.log import read
from imgtok.train.posttrain import DecoderPostTraining, PairBatches, PictureDataConfig, PostTraining, codes
from imgtok.train.posttrain_run import post_train
from imgtok.train.preserved import (
    check_post_training,
    condition_of,
    encoded_again,
    mixed_tokens,
    open_pairs,
    preserved,
)
from imgtok.train.randomness import derived_seed
from imgtok.train.recipes import POST_TRAININGS
from imgtok.train.run import train_generator, train_tokenizer

LABELS = (Label(name="class", size=2, values=("discs", "stripes")),)
SIZES = {"width": 16, "depth": 2, "num_heads": 2}
KINDS = {
    "next-token": TransformerSizes(**SIZES),
    "sequence": TransformerSizes(**SIZES),
    "any-length": TransformerSizes(**SIZES, prefix=NestedDropout(per="image"), tell_length=True),
    "next-scale": NextScaleSizes(**SIZES, gate_init=0.3),
    "masked": MaskedSizes(**SIZES),
}


@pytest.fixture(params=KINDS)
def pair(request, tokenizer_training):
    """A tokenizer and a generator of its tokens, both with random weights."""
    config, dice = tokenizer_training.tokenizer, torch.Generator().manual_seed(0)
    if request.param in ("sequence", "any-length"):
        vit = ViTConfig(width=16, depth=1, num_heads=2)
        nested = NestedDropout(per="image") if request.param == "any-length" else None
        backbone = QueryConfig(latents=(9,), patch_size=4, grid=(4, 4), encoder=vit, decoder=vit, nested=nested)
        config = replace(config, backbone=backbone)
    if request.param == "next-scale":
        stage = replace(config.quantizer, l2_norm=False)
        config = replace(config, quantizer=ResidualConfig(stage=stage, view=ScalesConfig(scales=(1, 2, 4), blends=2)))
    models = config.build().eval(), KINDS[request.param].config(config, LABELS).build().eval()
    with torch.no_grad():
        for parameter in (p for model in models for p in model.parameters() if p.ndim > 1):
            parameter.copy_(torch.randn(parameter.shape, generator=dice) * 1.5 / parameter[0].numel() ** 0.5)
    return models


def mixed(pair, images, preservation, rows=slice(None), batch_size=16):
    tokenizer, generator = pair
    part = images[rows]
    return mixed_tokens(
        generator,
        tokenizer,
        part,
        tokenizer.encode(part),
        torch.arange(len(images))[rows, None] % 2,
        preservation,
        SamplerConfig(guidance=Guidance(scale=1.5), batch_size=batch_size),
        seed=3,
        first=rows.start or 0,
    )


@pytest.fixture
def images():
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_with_preservation_one_pictures_keep_their_tokens_and_with_zero_they_are_drawn(pair, images):
    tokenizer, generator = pair
    assert torch.equal(mixed(pair, images, 1.0), tokenizer.encode(images))
    drawn = generate_tokens(
        generator,
        torch.arange(6)[:, None] % 2,
        SamplerConfig(guidance=Guidance(scale=1.5)),
        quantizer=tokenizer.quantizer,
        seed=derived_seed(3, "drawn"),
    )
    assert torch.equal(mixed(pair, images, 0.0), torch.cat(list(drawn)))


def test_a_picture_is_mixed_alike_in_any_batch(pair, images):
    whole = mixed(pair, images, 0.5)
    parts = [mixed(pair, images, 0.5, slice(0, 2)), mixed(pair, images, 0.5, slice(2, 6), batch_size=3)]
    assert torch.equal(torch.cat(parts), whole)


def test_kept_places_have_the_own_token_or_on_maps_the_nearest_code(pair, images):
    tokenizer, _ = pair
    tokens, own = mixed(pair, images, 0.5), tokenizer.encode(images)
    kept = preserved(image_keys(derived_seed(3, "preserved"), range(6)), tokens.shape[1], 0.5)
    assert 0.3 < kept.float().mean() < 0.7
    assert not torch.equal(tokens, own)
    if not isinstance(tokenizer.quantizer.config, ResidualConfig):
        assert torch.equal(tokens[kept], own[kept])
        return
    layout, latents = tokenizer.config.layout, tokenizer.latents(images)
    total, start = tokenizer.quantizer.start(len(images), layout), 0
    for stage, each in enumerate(layout.unflatten(tokens)):
        nearest = tokenizer.quantizer.nearest_after(latents, total, stage, layout).flatten(1)
        here = kept[:, start : start + nearest.shape[1]]
        assert torch.equal(each.flatten(1)[here], nearest[here])
        total, start = tokenizer.quantizer.accumulate(total, each, stage, layout), start + nearest.shape[1]


@pytest.mark.parametrize("preservation", [0.1, 0.7])
def test_tokens_stay_independently_with_the_given_probability(preservation):
    rows, length = 500, 64
    stays = preserved(image_keys(0, range(rows)), length, preservation).double()
    deviation = (preservation * (1 - preservation)) ** 0.5

    def check(share, expected, spread, count):
        assert abs(float(share) - expected) < 5 * spread / count**0.5

    check(stays.mean(), preservation, deviation, rows * length)
    centred = stays - preservation
    for other in (centred.roll(1, 0), centred.roll(1, 1)):  # of the picture before, of the place before
        check((centred * other).mean(), 0, deviation**2, rows * length)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, pictures):
    """A tokenizer's and a generator's folder; made by the first test that asks."""
    return tmp_path_factory.mktemp("pair")


@pytest.fixture
def folders(trained, tokenizer_training, generator_training):
    if not (trained / "generator" / "config.json").is_file():
        loop = replace(tokenizer_training.loop, steps=60, batch_size=8, evaluate_every=0, checkpoint_every=60)
        train_tokenizer(
            replace(tokenizer_training, loop=replace(loop, ema_decay=0.9)), trained / "tokenizer", device="cpu"
        )
        loop = replace(loop, steps=20)
        train_generator(
            replace(generator_training, loop=loop), trained / "tokenizer", trained / "generator", device="cpu"
        )
    return trained / "tokenizer", trained / "generator"


@pytest.fixture
def config(pictures):
    return PostTraining(
        loop=LoopConfig(steps=8, batch_size=4, precision="no", log_every=2, evaluate_every=2, checkpoint_every=4),
        preservation=0.6,
        clean_share=0.25,
        data=PictureDataConfig(source=str(pictures), val_share=0.2),
        loss=PictureLossConfig(l1=1.0, l2=1.0),
        optimizer=OptimizerConfig(lr=1e-3),
    )


def with_loop(config, **changes):
    return replace(config, loop=replace(config.loop, **changes))


def test_a_decoder_learns_and_all_else_stays_bit_for_bit(folders, config, tmp_path):
    config = with_loop(config, steps=60, batch_size=8, evaluate_every=20, ema_decay=0.8)
    outcome = post_train(config, *folders, tmp_path / "run", device="cpu")
    rows = [row for row in read(tmp_path / "run" / "log.jsonl") if "val_loss" in row]
    assert [row["step"] for row in rows] == [0, 20, 40, 60]
    assert outcome.metrics["val_loss"] == min(row["val_loss"] for row in rows) < 0.97 * rows[0]["val_loss"]
    assert outcome.metrics["mixed_psnr"] > rows[0]["mixed_psnr"]
    before, after = imgtok.load(folders[0]), imgtok.load(tmp_path / "run")
    assert after.config == before.config
    moved = {name for name, value in before.state_dict().items() if not torch.equal(after.state_dict()[name], value)}
    trainable = ("backbone.decoder.", "from_codes.")
    assert moved == {name for name, _ in before.named_parameters() if name.startswith(trainable)}
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(before.encode(images), after.encode(images))


@pytest.mark.parametrize("adversarial", [0.0, 0.1])
def test_a_resumed_run_equals_the_uninterrupted_one(folders, config, adversarial, tmp_path):
    loss = replace(config.loss, adversarial=adversarial)
    small = replace(loss.discriminator, width=8, num_layers=2, norm="group")
    config = replace(config, loss=replace(loss, discriminator=small))
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    post_train(config, *folders, whole, device="cpu")
    shutil.copytree(whole, resumed)
    (resumed / "checkpoints" / "step-00000008.pt").unlink()
    (resumed / "model.safetensors").unlink()
    post_train(config, *folders, resumed, device="cpu", resume=True)
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
    one, two = (checkpoint.read(out / "checkpoints" / "step-00000008.pt") for out in (whole, resumed))
    assert one["best"]["metrics"] == two["best"]["metrics"]
    for name, value in one["modules"][0].items():
        assert torch.equal(two["modules"][0][name], value)


def test_a_run_without_gain_stops_and_saves_the_original(folders, config, tmp_path):
    """So it does with a learning rate that spoils the decoder; and when it is resumed it does not go on."""
    config = replace(with_loop(config, steps=40, ema_decay=0.0), patience=3, optimizer=OptimizerConfig(lr=1.0))
    for resume in (False, True):
        outcome = post_train(config, *folders, tmp_path / "run", device="cpu", resume=resume)
        log = [row for row in read(tmp_path / "run" / "log.jsonl") if "val_loss" in row]
        assert [row["step"] for row in log[:4]] == [0, 2, 4, 6]
        assert max(row["step"] for row in log) == 6
        assert outcome.metrics["val_loss"] == log[0]["val_loss"] < log[3]["val_loss"]
        assert hub.fingerprint(imgtok.load(tmp_path / "run")) == hub.fingerprint(imgtok.load(folders[0]))


def test_the_best_of_a_run_is_kept_and_waited_for():
    best, model = Best("loss", patience=2), torch.nn.Linear(1, 1)
    for step, loss in enumerate([3.0, 1.0, float("nan"), 2.0]):
        torch.nn.init.constant_(model.weight, loss)
        assert not best.exhausted
        best.see(step, {"loss": loss, "other": 0.0}, model)
    assert best.exhausted
    again = Best("loss", patience=2)
    again.restore(best.state())
    assert again.exhausted
    again.give(model)
    assert (again.step, model.weight.item()) == (1, 1.0)
    assert not Best("loss", patience=0).exhausted
    with pytest.raises(ValueError, match="patience must be 0"):
        Best("loss", patience=-1)


@pytest.mark.parametrize("reencode", [False, True])
def test_tokens_are_stored_as_drawn_or_as_the_encoder_sees_them(folders, config, reencode, tmp_path):
    config = replace(with_loop(config, steps=1, evaluate_every=0), reencode=reencode, draw_batch=5)
    post_train(config, *folders, tmp_path / "run", device="cpu")
    model, generator, source = imgtok.load(folders[0]), posttrain_run.load_generator(folders[1]), load_images(
        config.data.source, "val", val_share=0.2
    )  # fmt: skip
    pairs = open_pairs(source, tmp_path / "run" / "tokens" / "val", 16)
    rows = torch.arange(len(source))
    images = pairs.images(rows).float() / 127.5 - 1
    own, labels = pairs.own.rows(rows)
    assert torch.equal(own, model.encode(images))
    drawn = mixed_tokens(
        generator, model, images, own, labels, config.preservation, config.sampler, seed=config.loop.seed
    )
    stored = pairs.mixed.rows(rows)[0]
    same = float((stored == (encoded_again(model, drawn) if reencode else drawn)).float().mean())
    assert same > 0.95  # packed weights, which draw, round otherwise
    assert not torch.equal(stored, own)


def test_fewer_pictures_spread_over_the_data(folders, config, tmp_path):
    config = with_loop(replace(config, data=replace(config.data, pictures=5, val_pictures=2)), steps=1)
    post_train(config, *folders, tmp_path / "run", device="cpu")
    names = TokenCache(tmp_path / "run" / "tokens" / "train" / "mixed").names
    assert len(names) == 5
    assert len({name.split("/")[-2] if "/" in name else name for name in names}) > 1
    assert TokenCache(tmp_path / "run" / "tokens" / "val" / "own").images == 2


def test_a_batch_has_the_clean_share_and_does_not_depend_on_processes(folders, config, tmp_path):
    post_train(with_loop(config, steps=1), *folders, tmp_path / "run", device="cpu")
    source = load_images(config.data.source, "train", val_share=0.2)
    pairs = open_pairs(source, tmp_path / "run" / "tokens" / "train", 16)
    pairs = replace(pairs, own=FakeCache(len(source), 1), mixed=FakeCache(len(source), 2))
    loop = LoopConfig(steps=3, batch_size=8)
    whole = PairBatches(pairs, 0.25, loop)[2]
    assert whole.tokens[:, 0].tolist() == [1, 1, 2, 2, 2, 2, 2, 2]
    parts = PairBatches(pairs, 0.25, replace(loop, accumulate=2))
    assert torch.equal(torch.cat([parts[4].images, parts[5].images]), whole.images)
    assert torch.equal(torch.cat([parts[4].tokens, parts[5].tokens]), whole.tokens)


class FakeCache:
    """Rows of one number."""

    def __init__(self, length, number):
        self.length, self.number = length, number

    def __len__(self):
        return self.length

    def rows(self, rows):
        return torch.full((len(rows), 16), self.number), torch.zeros(len(rows), 1, dtype=torch.int64)


def test_the_task_sees_what_the_decoder_makes_of_the_tokens(folders, config):
    task, model = DecoderPostTraining(config, imgtok.load(folders[0])).eval(), imgtok.load(folders[0])
    tokens = torch.randint(32, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pictures = task.model.decode_latents(codes(task.model, tokens)).clamp(-1, 1)
    torch.testing.assert_close(pictures, model.decode(tokens), atol=1e-5, rtol=0)


def test_labels_are_matched_by_name():
    sets = (
        imgtok.data.LabelSet("style", ("flat", "noto")),
        imgtok.data.LabelSet("class", ("stripes", "discs")),
    )
    labels = torch.tensor([[0, 1], [1, 0]])
    assert condition_of(LabelConditionConfig(labels=LABELS), sets, labels).tolist() == [[0], [1]]
    numbered = LabelConditionConfig(labels=(Label(size=2),))
    assert condition_of(numbered, sets, labels).tolist() == [[1], [0]]
    counted = LabelConditionConfig(labels=(*LABELS, length_label(9)))
    assert condition_of(counted, sets, labels).tolist() == [[0], [1]]  # how many tokens is added when they are drawn
    with pytest.raises(ValueError, match=r"'stripes' is none that the generator is told \(3 classes without names\)"):
        condition_of(LabelConditionConfig(labels=(Label(size=3),)), sets[1:], labels[:, 1:])
    with pytest.raises(ValueError, match="told 'kind', but the pictures are labelled by style, class"):
        condition_of(LabelConditionConfig(labels=(Label(name="kind", size=2),)), sets, labels)
    with pytest.raises(ValueError, match="is told texts"):
        condition_of(TextConditionConfig(), sets, labels)
    unclassed = (imgtok.data.LabelSet("class", ("image",)),)
    with pytest.raises(ValueError, match="sub-folders that are named like its classes"):
        condition_of(LabelConditionConfig(labels=LABELS), unclassed, labels[:, :1])


def test_what_is_compiled_is_what_a_step_calls(folders, config, compiled, tmp_path):
    post_train(with_loop(config, steps=2, evaluate_every=0, compile=True), *folders, tmp_path / "run", device="cpu")
    assert len(compiled) == 1 and compiled[0] >= 2


def test_pairs_that_do_not_belong_together_are_refused(tokenizer_training, folders, config, tmp_path):
    base, generator = tokenizer_training.tokenizer, KINDS["next-token"].config(tokenizer_training.tokenizer, LABELS)
    with pytest.raises(ValueError, match="32 codes but the tokenizer has 64"):
        wide = replace(base, quantizer=replace(base.quantizer, codebook_size=64))
        check_post_training(wide.build(), generator.build())
    with pytest.raises(ValueError, match="codes its pictures of 32 pixels"):
        check_post_training(replace(base, image_size=32).build(), generator.build())
    with pytest.raises(ValueError, match="tokens are vectors"):
        check_post_training(replace(base, quantizer=GaussianConfig(dim=4)).build(), generator.build())
    post_train(with_loop(config, steps=1), *folders, tmp_path / "run", device="cpu")
    other = imgtok.load(folders[0])
    other.from_codes.bias.data.add_(1)
    hub.save(other, tmp_path / "other")
    with pytest.raises(ValueError, match="this tokenizer is not the one that"):
        post_train(
            with_loop(config, steps=1), tmp_path / "other", folders[1], tmp_path / "run", device="cpu", resume=True
        )


@pytest.mark.parametrize(
    ("field", "value"), [("preservation", 1.1), ("preservation", -0.1), ("clean_share", 1.0), ("draw_batch", 0)]
)
def test_settings_out_of_range_are_refused(config, field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        replace(config, **{field: value})


def test_the_published_recipe():
    """Learning rates 5e-5 to 1e-5, 40 epochs of 200,000 pictures at batch 1024, sigma 0.7 (arXiv:2509.12474)."""
    recipe = POST_TRAININGS["robusttok-posttrain"]()
    assert recipe.loop.steps * recipe.loop.batch_size == pytest.approx(40 * 200_000, rel=1e-3)
    assert (recipe.preservation, recipe.reencode, recipe.clean_share, recipe.data.pictures) == (0.7, True, 0, 200_000)
    for optimizer in (recipe.optimizer, recipe.discriminator_optimizer):
        assert (optimizer.lr, optimizer.lr * optimizer.final_share) == (5e-5, pytest.approx(1e-5))


def test_pictures_that_vanished_are_named(folders, config, tmp_path):
    source = load_images(config.data.source, "val", val_share=0.2)
    tokenizer = imgtok.load(folders[0])
    for name in ("own", "mixed"):
        encode_source(tokenizer, hub.fingerprint(tokenizer), source, tmp_path / name)
    with pytest.raises(ValueError, match="is not in the data any more"):
        open_pairs(source.select([0]), tmp_path, 16)
