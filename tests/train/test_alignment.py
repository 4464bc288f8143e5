"""Alignment is the cosine at the teacher's places."""

import pytest
import torch
from torch import Tensor, nn

from imgtok.train.alignment import AlignmentHead, alignment_loss


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_alignment_is_one_minus_the_mean_cosine():
    target = noise(2, 4, 3, 3)
    for features, loss in [(3 * target, 0.0), (-target, 2.0), (target.roll(2, 1) * 0 + 1e-3, None)]:
        found = float(alignment_loss(features, target))
        cosine = nn.functional.cosine_similarity(features, target, dim=1).mean()
        assert found == pytest.approx(float(1 - cosine), abs=1e-5)
        assert loss is None or found == pytest.approx(loss, abs=1e-5)


def test_features_are_resized_to_the_teachers_places():
    flat = noise(1, 4, 1, 1).expand(1, 4, 2, 2)
    assert float(alignment_loss(flat, flat[..., :1, :1].expand(1, 4, 5, 5))) == pytest.approx(0, abs=1e-5)
    assert float(alignment_loss(flat.repeat(1, 1, 4, 4), flat)) == pytest.approx(0, abs=1e-5)


def test_the_head_works_place_by_place():
    torch.manual_seed(0)
    head, features = AlignmentHead(4, 8, 5), noise(2, 4, 3, 3)
    out = head(features)
    assert out.shape == (2, 5, 3, 3)
    torch.testing.assert_close(head(features[..., 1:2, 2:3]), out[..., 1:2, 2:3])
