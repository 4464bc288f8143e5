import torch

from imgtok.data import load
from imgtok.train.config import ImageDataConfig, LoopConfig
from imgtok.train.data import ImageBatches, Share, batch_positions


def test_epochs_visit_every_item_once():
    visited = torch.cat([batch_positions(10, 4, seed=0, step=step) for step in range(5)])
    for epoch in visited.split(10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert visited[:10].tolist() != visited[10:].tolist()


def test_a_batch_depends_on_seed_and_step_alone():
    assert torch.equal(batch_positions(100, 8, seed=3, step=7), batch_positions(100, 8, seed=3, step=7))
    assert not torch.equal(batch_positions(100, 8, seed=3, step=7), batch_positions(100, 8, seed=4, step=7))


def test_processes_and_micro_batches_share_the_same_batch(pictures):
    data = ImageDataConfig(source=str(pictures), flip=True, shift=2)
    source = load(pictures, "train")
    whole = ImageBatches(source, 16, data, LoopConfig(steps=2, batch_size=8))
    parts = [
        ImageBatches(source, 16, data, LoopConfig(steps=2, batch_size=8, accumulate=2), Share(rank, 2))
        for rank in (0, 1)
    ]
    for step in range(2):
        pieces = [parts[rank][2 * step + micro].images for micro in (0, 1) for rank in (0, 1)]
        assert torch.equal(torch.cat(pieces), whole[step].images)


def test_pictures_of_any_size_are_cropped_to_one(pictures):
    batches = ImageBatches(
        load("photos", "val"), 32, ImageDataConfig(source="photos"), LoopConfig(steps=1, batch_size=3)
    )
    images = batches[0].images
    assert images.shape == (3, 3, 32, 32)
    assert -1 <= images.min() < images.max() <= 1
