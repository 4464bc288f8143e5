"""Training with swapped codes: the schedule, what it leaves alone, and what it is for."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from imgtok.data import load as load_images
from imgtok.data.transforms import to_float
from imgtok.quantizers.perturb import draw, perturbed
from imgtok.train.config import PerturbConfig, TokenizerTraining
from imgtok.train.data import ImageBatch
from imgtok.train.run import train_tokenizer
from imgtok.train.schedules import perturbation_share
from imgtok.train.tasks import TokenizerTask


def test_the_strength_is_that_of_the_paper() -> None:
    """200 epochs: whole for 40, then down to a half until 120."""
    config = PerturbConfig()
    shares = [perturbation_share(config, epoch, 200) for epoch in (0, 40, 80, 120, 199)]
    assert shares == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.5])
    assert perturbation_share(replace(config, final=0.0), 150, 200) == 0
    assert [perturbation_share(replace(config, hold=0.5, until=0.5), step, 10) for step in (5, 6)] == [1.0, 0.5]


def test_neighbours_are_in_proportion_to_the_codes_unless_given() -> None:
    assert [PerturbConfig().neighbours_of(size) for size in (4096, 16384, 512, 16)] == [100, 400, 12, 2]
    assert PerturbConfig(neighbours=7).neighbours_of(512) == 7


@pytest.mark.parametrize(
    ("values", "message"),
    [({"share": 1.5}, "perturb.share must lie"), ({"hold": 0.7}, "must rise"), ({"neighbours": -1}, "or more, got -1")],
)
def test_values_out_of_range_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PerturbConfig(**values)


def test_losses_of_the_codebook_see_clean_codes_and_those_of_the_picture_swapped_ones(
    tokenizer_training: TokenizerTraining,
) -> None:
    plain = TokenizerTask(tokenizer_training)
    task = TokenizerTask(replace(tokenizer_training, perturb=PerturbConfig(share=0.5, neighbours=8)))
    task.load_state_dict(plain.state_dict())
    batch = ImageBatch(torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    outputs = []
    for each in (plain, task):
        torch.manual_seed(0)  # of dropout
        outputs.append(each(batch, 0, torch.Generator().manual_seed(1)))
    clean, swapped = outputs
    assert torch.equal(clean.losses["commitment"], swapped.losses["commitment"])
    assert not torch.equal(clean.losses["l2"], swapped.losses["l2"])
    assert torch.equal(clean.kept[3], swapped.kept[3])  # the indices that upkeep counts
    torch.testing.assert_close(clean.kept[1][2:], swapped.kept[1][2:])  # pictures of the other half


@pytest.mark.slow
def test_a_decoder_trained_with_swapped_codes_loses_less_by_swaps(
    tokenizer_training: TokenizerTraining, pictures, tmp_path
) -> None:
    config = replace(tokenizer_training, loop=replace(tokenizer_training.loop, steps=300, evaluate_every=0))
    source = load_images(str(pictures))
    images = to_float(torch.stack([source.image(i) for i in range(len(source))]))

    def lost(share: float) -> float:
        """How much the error grows by swaps, relative to the variance of the pictures."""
        training = replace(config, perturb=PerturbConfig(share=share, neighbours=8, final=1.0))
        model = train_tokenizer(training, tmp_path / f"{share}", device="cpu").model
        dice = partial(draw, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            latents = model.latents(images)
            pictures = [
                model.decode_latents(perturbed(model.quantizer, latents, dice, rate=rate, neighbours=8).latents)
                for rate in (0.0, 1.0)
            ]
        clean, swapped = (float((each - images).square().mean() / images.var()) for each in pictures)
        print(clean, swapped)
        return swapped - clean

    assert lost(0.5) < 0.7 * lost(0.0)
