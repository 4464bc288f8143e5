"""Teachers see normalised squares and learn nothing; alignment is the cosine at the teacher's places."""

import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from imgtok.backbones.semantic import (
    DINOV2_SIZE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    AlignmentHead,
    FrozenTeacher,
    alignment_loss,
    dinov2,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class ToyTransformer(nn.Module):
    """What of timm's vision transformers is used: a class token and patches of 14 pixels."""

    num_prefix_tokens, num_features = 1, 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward_features(self, images: Tensor) -> Tensor:
        patches = nn.functional.avg_pool2d(images, 14).flatten(2).transpose(1, 2) * self.scale
        return torch.cat([torch.full_like(patches[:, :1], 100.0), patches], dim=1)


@pytest.fixture
def timm(monkeypatch):
    asked: list[dict] = []

    def create_model(name: str, **options):
        asked.append({"name": name, **options})
        return ToyTransformer()

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    return asked


def test_dinov2_maps_are_of_patches_without_the_class_token(timm):
    teacher = dinov2("dinov2-l")
    images = torch.full((1, 3, 8, 8), -1.0)
    images[..., 4:] = 1.0
    maps = teacher(images)
    assert maps.shape == (1, 3, 37, 37) and teacher.width == 3 and maps.dtype == torch.float32
    assert maps.max() < 50
    assert (maps[0, :, :, 30] > maps[0, :, :, 5]).all()  # columns stay columns
    assert timm[0]["pretrained"] and timm[0]["img_size"] == DINOV2_SIZE


def test_dinov2_weights_may_come_from_a_file(timm, tmp_path):
    save_file({"scale": torch.tensor(3.0)}, tmp_path / "dino.safetensors")
    teacher = dinov2("dinov2-s", tmp_path / "dino.safetensors")
    assert not timm[0]["pretrained"]
    assert float(teacher.network.model.scale) == 3


def test_without_timm_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install imgtok\[teachers\]"):
        dinov2("dinov2-l")


def test_pictures_are_normalised_and_resized_before_a_teacher_sees_them():
    teacher = FrozenTeacher(nn.Identity(), 3, 6, IMAGENET_MEAN, IMAGENET_STD)
    grey = teacher(torch.zeros(2, 3, 12, 9))
    expected = (0.5 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(grey, expected[:, None, None].expand(2, 3, 6, 6))
    images = noise(1, 3, 6, 6).clamp(-1, 1)
    torch.testing.assert_close(FrozenTeacher(nn.Identity(), 3, 6)(images), images)


def test_a_teacher_never_learns_nor_leaves_evaluation():
    teacher = FrozenTeacher(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Dropout(0.9)), 2, 4).train()
    images = noise(1, 3, 4, 4).requires_grad_()
    seen = teacher(images)
    assert not seen.requires_grad and not any(parameter.requires_grad for parameter in teacher.parameters())
    assert torch.equal(seen, teacher(images))


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
