"""Training promises: it learns, it resumes bit for bit, it survives being killed, it stops when it must."""

import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import imgtok
from imgtok import config as configs
from imgtok.data import load as load_images
from imgtok.generators import load as load_generator
from imgtok.hub import fingerprint
from imgtok.quantizers.residual import ResidualConfig
from imgtok.quantizers.views import ScalesConfig
from imgtok.sample import generate
from imgtok.tokencache import encode_source
from imgtok.train import checkpoint, tasks
from imgtok.train.config import PerturbConfig
from imgtok.train.generator_config import MistakesConfig, NextScaleSizes
from imgtok.train.log import read
from imgtok.train.loop import Diverged, Stopped
from imgtok.train.run import train_generator, train_tokenizer


def states_equal(first: Path, second: Path) -> bool:
    """Whether two runs ended with bit-identical models, optimisers and averages."""
    one, two = (checkpoint.read(checkpoint.latest(out / "checkpoints")) for out in (first, second))
    return flat(one) == flat(two)


def flat(value) -> list:
    if isinstance(value, torch.Tensor):
        return [value.numpy().tobytes()]
    if isinstance(value, dict):
        return [part for key in value for part in [key, *flat(value[key])]]
    if isinstance(value, (list, tuple)):
        return [part for item in value for part in flat(item)]
    return [value]


def longer(config, **changes):
    return replace(config, loop=replace(config.loop, **changes))


def test_a_tokenizer_learns_and_is_saved(tokenizer_training, tmp_path):
    config = longer(tokenizer_training, steps=150, batch_size=8, evaluate_every=0, checkpoint_every=150, ema_decay=0.9)
    outcome = train_tokenizer(config, tmp_path / "run", device="cpu")
    rows = [row for row in read(tmp_path / "run" / "log.jsonl") if "loss" in row]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert {"l1", "l2", "commitment", "perplexity", "reseeded", "grad_norm", "lr", "rows_per_second"} <= rows[0].keys()
    loaded = imgtok.load(tmp_path / "run")
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(loaded.encode(images), outcome.model.encode(images))
    assert outcome.metrics["val_psnr"] > 10


def of_maps(training, **changes):
    """The same training for a tokenizer of three maps, all but the last stage dropped now and then."""
    stage = replace(training.tokenizer.quantizer, l2_norm=False)
    view = ScalesConfig(scales=(1, 2, 4), blends=2)
    quantizer = ResidualConfig(stage=stage, view=view, dropout=0.2)
    return replace(training, tokenizer=replace(training.tokenizer, quantizer=quantizer, code_kernel=3), **changes)


@pytest.mark.parametrize("learning", ["ema", "loss"])
def test_a_tokenizer_of_maps_learns_and_encodes_a_data_set(tokenizer_training, pictures, learning, tmp_path):
    config = longer(tokenizer_training, steps=150, batch_size=8, evaluate_every=0, checkpoint_every=150, ema_decay=0.9)
    stage = replace(config.tokenizer.quantizer, learning=learning)
    config = replace(config, tokenizer=replace(config.tokenizer, quantizer=stage))
    config = of_maps(config, loss=replace(config.loss, codebook=1.0 if learning == "loss" else 0.0))
    outcome = train_tokenizer(config, tmp_path / "run", device="cpu")
    rows = [row for row in read(tmp_path / "run" / "log.jsonl") if "loss" in row]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    logged = {"codes_used", "perplexity", "reseeded", "codes_used_0", "codes_used_2", "perplexity_0", "perplexity_2"}
    assert logged | {"commitment", "codebook" if learning == "loss" else "blend"} <= rows[0].keys()
    assert outcome.metrics["val_psnr"] > 10
    loaded = imgtok.load(tmp_path / "run")
    assert loaded.config == config.tokenizer
    cache = encode_source(loaded, fingerprint(loaded), load_images(pictures), tmp_path / "tokens")
    assert cache.description.layout == loaded.config.layout
    assert cache.rows(torch.arange(3))[0].shape == (3, 1 + 4 + 16)


def test_a_generator_of_one_grid_refuses_maps(tokenizer_training, generator_training):
    with pytest.raises(ValueError, match="one grid or sequence of tokens, but the tokenizer codes an image in several"):
        generator_training.model.config(of_maps(tokenizer_training).tokenizer, ())


def test_a_generator_learns_and_samples(tokenizer_training, generator_training, tmp_path):
    train_tokenizer(longer(tokenizer_training, steps=60), tmp_path / "tokenizer", device="cpu")
    config = longer(generator_training, steps=120, batch_size=8, evaluate_every=0, ema_decay=0.9)
    outcome = train_generator(config, tmp_path / "tokenizer", tmp_path / "run", device="cpu")
    assert outcome.metrics["val_loss"] < 0.9 * math.log(32)
    generator, tokenizer = load_generator(tmp_path / "run"), imgtok.load(tmp_path / "run" / "tokenizer")
    assert generator.config.condition.labels[0].values == ("discs", "stripes")
    (images,) = generate(generator, tokenizer, torch.tensor([[0], [1]]))
    assert images.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("mistakes", [None, MistakesConfig(share=0.2, neighbours=4)])
def test_a_next_scale_generator_learns_samples_and_resumes(tokenizer_training, generator_training, mistakes, tmp_path):
    train_tokenizer(longer(of_maps(tokenizer_training), steps=60), tmp_path / "tokenizer", device="cpu")
    model = NextScaleSizes(width=16, depth=2, num_heads=2, mlp_ratio=2, dropout=0.1, drop_path=0.1, gate_init=0.3)
    model = replace(model, mistakes=mistakes)
    config = longer(replace(generator_training, model=model), steps=120, batch_size=8, ema_decay=0.9)
    config = longer(config, evaluate_every=0, checkpoint_every=60)
    outcome = train_generator(config, tmp_path / "tokenizer", tmp_path / "run", device="cpu")
    assert outcome.metrics["val_loss"] < 0.9 * math.log(32)
    generator, tokenizer = load_generator(tmp_path / "run"), imgtok.load(tmp_path / "run" / "tokenizer")
    (images,) = generate(generator, tokenizer, torch.tensor([[0], [1]]))
    assert images.shape == (2, 3, 16, 16)
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    (tmp_path / "again" / "checkpoints" / "step-00000120.pt").unlink()
    train_generator(config, tmp_path / "tokenizer", tmp_path / "again", device="cpu", resume=True)
    assert states_equal(tmp_path / "run", tmp_path / "again")


def test_a_next_scale_generator_refuses_one_grid(tokenizer_training):
    sizes = NextScaleSizes(width=16, depth=2, num_heads=2)
    with pytest.raises(ValueError, match="predicts map after map, but the tokenizer codes an image in one grid"):
        sizes.config(tokenizer_training.tokenizer, ())


@pytest.mark.parametrize("adversarial", [0.0, 0.1])
@pytest.mark.parametrize("maps", [False, True], ids=["grid", "maps"])
def test_a_resumed_tokenizer_run_equals_the_uninterrupted_one(tokenizer_training, maps, adversarial, tmp_path):
    tokenizer_training = of_maps(tokenizer_training) if maps else tokenizer_training
    loss = replace(tokenizer_training.loss, adversarial=adversarial, adversarial_start=2)
    small = replace(loss.discriminator, width=8, num_layers=2, norm="group")
    config = replace(tokenizer_training, loss=replace(loss, discriminator=small))
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train_tokenizer(config, whole, device="cpu")
    shutil.copytree(whole, resumed)
    (resumed / "checkpoints" / "step-00000008.pt").unlink()
    (resumed / "model.safetensors").unlink()
    train_tokenizer(config, resumed, resume=True, device="cpu")
    assert states_equal(whole, resumed)
    assert (whole / "model.safetensors").read_bytes() == (resumed / "model.safetensors").read_bytes()
    timeless = [
        [
            {k: v for k, v in row.items() if k not in ("rows_per_second", "memory_bytes")}
            for row in read(out / "log.jsonl")
        ]
        for out in (whole, resumed)
    ]
    assert timeless[0] == timeless[1]


def test_a_resumed_generator_run_equals_the_uninterrupted_one(tokenizer_training, generator_training, tmp_path):
    train_tokenizer(tokenizer_training, tmp_path / "tokenizer", device="cpu")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train_generator(generator_training, tmp_path / "tokenizer", whole, device="cpu")
    shutil.copytree(whole, resumed)
    (resumed / "checkpoints" / "step-00000008.pt").unlink()
    train_generator(generator_training, tmp_path / "tokenizer", resumed, resume=True, device="cpu")
    assert states_equal(whole, resumed)


SCRIPT = """
import sys
from pathlib import Path
from imgtok import config as configs
from imgtok.train.config import TokenizerTraining
from imgtok.train.run import train_tokenizer
import torch
torch.set_num_threads(1)
config = configs.load(TokenizerTraining, sys.argv[1])
train_tokenizer(config, sys.argv[2], resume=(Path(sys.argv[2]) / "train.json").is_file(), device="cpu")
"""


def test_a_killed_run_goes_on_from_its_last_checkpoint_and_ends_the_same(tokenizer_training, tmp_path):
    config = longer(tokenizer_training, steps=60, evaluate_every=0, checkpoint_every=5)
    configs.save(config, tmp_path / "config.json")
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path / "config.json")]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True, timeout=120)
    with subprocess.Popen(
        [*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None:
            if len(checkpoint.every(tmp_path / "killed" / "checkpoints")) >= 2:
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    subprocess.run([*command, str(tmp_path / "killed")], check=True, capture_output=True, timeout=120)
    assert states_equal(tmp_path / "whole", tmp_path / "killed")


def test_ctrl_c_saves_and_says_how_to_resume(tokenizer_training, tmp_path, monkeypatch):
    observe, handler = tasks.TokenizerTask.observe, signal.getsignal(signal.SIGINT)

    def interrupted(self, output, generator):
        if not (tmp_path / "asked").exists():
            (tmp_path / "asked").touch()
            os.kill(os.getpid(), signal.SIGINT)
        return observe(self, output, generator)

    monkeypatch.setattr(tasks.TokenizerTask, "observe", interrupted)
    with pytest.raises(Stopped, match=r"stopped after step 1; .*--resume"):
        train_tokenizer(tokenizer_training, tmp_path / "stopped", device="cpu")
    train_tokenizer(tokenizer_training, tmp_path / "stopped", resume=True, device="cpu")
    monkeypatch.undo()
    train_tokenizer(tokenizer_training, tmp_path / "whole", device="cpu")
    assert states_equal(tmp_path / "whole", tmp_path / "stopped")
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_non_finite_loss_stops_the_run_and_names_the_last_good_checkpoint(tokenizer_training, tmp_path, monkeypatch):
    forward = tasks.TokenizerTask.forward

    def poisoned(self, batch, step, generator):
        output = forward(self, batch, step, generator)
        return output if step < 6 else output._replace(losses={"l2": output.losses["l2"] * float("nan")})

    monkeypatch.setattr(tasks.TokenizerTask, "forward", poisoned)
    with pytest.raises(Diverged, match=r"not a number.*step-00000004\.pt"):
        train_tokenizer(tokenizer_training, tmp_path / "run", device="cpu")
    assert [path.name for path in checkpoint.every(tmp_path / "run" / "checkpoints")] == ["step-00000004.pt"]


def test_micro_batches_add_up_to_the_whole_batch(generator_training, tokenizer_training, tmp_path):
    train_tokenizer(tokenizer_training, tmp_path / "tokenizer", device="cpu")
    model = replace(generator_training.model, dropout=0.0, drop_condition=0.0)
    config = longer(replace(generator_training, model=model), ema_decay=0.0)
    train_generator(config, tmp_path / "tokenizer", tmp_path / "whole", device="cpu")
    train_generator(longer(config, accumulate=2), tmp_path / "tokenizer", tmp_path / "parts", device="cpu")
    whole, parts = (load_generator(tmp_path / name).state_dict() for name in ("whole", "parts"))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, atol=2e-4, rtol=0)


def test_dead_codes_are_reseeded_until_all_are_used(tokenizer_training, tmp_path):
    """All latents fall on few codes at first; re-seeding brings the others into use."""
    quantizer = replace(tokenizer_training.tokenizer.quantizer, ema_decay=0.9)
    config = longer(
        replace(tokenizer_training, tokenizer=replace(tokenizer_training.tokenizer, quantizer=quantizer)),
        steps=100,
        batch_size=16,
        evaluate_every=0,
        ema_decay=0.5,
    )
    train_tokenizer(config, tmp_path / "cured", device="cpu")
    never = replace(config.tokenizer, quantizer=replace(quantizer, reseed_below=0.0))
    train_tokenizer(replace(config, tokenizer=never), tmp_path / "sick", device="cpu")
    cured, sick = (
        [row for row in read(tmp_path / name / "log.jsonl") if "perplexity" in row] for name in ("cured", "sick")
    )
    assert sum(row["reseeded"] for row in cured) > 0
    assert all(row["reseeded"] == 0 for row in sick)
    assert cured[-1]["perplexity"] > 1.2 * sick[-1]["perplexity"]


def test_a_folder_with_a_run_is_never_overwritten(tokenizer_training, tmp_path):
    train_tokenizer(tokenizer_training, tmp_path / "run", device="cpu")
    with pytest.raises(ValueError, match="already holds a run; add --resume"):
        train_tokenizer(tokenizer_training, tmp_path / "run", device="cpu")
    with pytest.raises(ValueError, match="other settings"):
        train_tokenizer(longer(tokenizer_training, seed=1), tmp_path / "run", resume=True, device="cpu")
    with pytest.raises(ValueError, match="no run to resume"):
        train_tokenizer(tokenizer_training, tmp_path / "none", resume=True, device="cpu")


def test_a_truncated_picture_is_named_and_skipped(tokenizer_training, pictures, tmp_path, caplog):
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    damaged = next(path for path in sorted(data.rglob("*.png")))
    damaged.write_bytes(damaged.read_bytes()[:60])
    config = replace(tokenizer_training, data=replace(tokenizer_training.data, source=str(data)))
    with caplog.at_level(logging.WARNING):
        train_tokenizer(longer(config, steps=12), tmp_path / "run", device="cpu")
    assert damaged.name in caplog.text


def test_the_settings_of_a_run_are_written_beside_it(tokenizer_training, tmp_path):
    train_tokenizer(tokenizer_training, tmp_path / "run", device="cpu")
    assert configs.load(type(tokenizer_training), tmp_path / "run" / "train.json") == tokenizer_training
    assert json.loads((tmp_path / "run" / "train.json").read_text())["type"] == "TokenizerTraining"
    assert sorted(path.name for path in (tmp_path / "run" / "previews").iterdir()) == [
        "step-00000004.png",
        "step-00000008.png",
    ]


def test_what_is_compiled_is_what_a_step_calls(tokenizer_training, generator_training, compiled, tmp_path):
    changed = {"steps": 2, "evaluate_every": 0, "compile": True}
    loop = replace(tokenizer_training.loop, **changed)
    train_tokenizer(replace(tokenizer_training, loop=loop), tmp_path / "tokenizer", device="cpu")
    loop = replace(generator_training.loop, **changed)
    generator = replace(generator_training, loop=loop)
    train_generator(generator, tmp_path / "tokenizer", tmp_path / "generator", device="cpu")
    assert len(compiled) == 3 and min(compiled) >= 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own look at what it compiles
def test_compiled_training_learns_the_same(tokenizer_training, tmp_path):
    """With an adversary, whose weight takes a second gradient through the decoder, and other swaps at each step."""
    loss = replace(tokenizer_training.loss, adversarial=0.1, adversarial_start=1)
    small = replace(loss.discriminator, width=8, num_layers=2, norm="group")
    loop = replace(tokenizer_training.loop, steps=4, log_every=1, evaluate_every=0)
    backbone = replace(tokenizer_training.tokenizer.backbone, dropout=0.0)
    training = replace(
        tokenizer_training,
        tokenizer=replace(tokenizer_training.tokenizer, backbone=backbone),
        loss=replace(loss, discriminator=small),
        perturb=PerturbConfig(share=0.5, neighbours=4),
    )
    losses = list[list[float]]()
    for compile in (False, True):
        out = tmp_path / str(compile)
        train_tokenizer(replace(training, loop=replace(loop, compile=compile)), out, device="cpu")
        losses.append([row["loss"] for row in read(out / "log.jsonl") if "loss" in row])
    assert len(losses[0]) == 4
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)  # rounding grows from step to step
    assert losses[1][:2] == pytest.approx(losses[0][:2], rel=1e-4)
