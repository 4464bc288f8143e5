"""Teachers see normalised squares and learn nothing; DINOv2's have timm's names and places."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from imgtok.train import teachers
from imgtok.train.teachers import IMAGENET_MEAN, IMAGENET_STD, ClassToken, FrozenTeacher, PatchMap


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TINY = (8, 1, 2)  # width, depth, heads


@pytest.fixture
def state(monkeypatch) -> dict[str, Tensor]:
    """Weights as timm names those of a DINOv2, of a size that is quickly built."""
    monkeypatch.setitem(teachers.DINOV2_SIZES, "dinov2-s", TINY)
    width, hidden, shapes = TINY[0], 4 * TINY[0], dict[str, tuple[int, ...]]()
    for name, out, into in (("attn.qkv", 3 * width, width), ("attn.proj", width, width)):
        shapes |= {f"blocks.0.{name}.weight": (out, into), f"blocks.0.{name}.bias": (out,)}
    for name, out, into in (("mlp.fc1", hidden, width), ("mlp.fc2", width, hidden)):
        shapes |= {f"blocks.0.{name}.weight": (out, into), f"blocks.0.{name}.bias": (out,)}
    for name in ("blocks.0.norm1", "blocks.0.norm2", "norm"):
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    shapes |= {"blocks.0.ls1.gamma": (width,), "blocks.0.ls2.gamma": (width,), "cls_token": (1, 1, width)}
    shapes |= {"pos_embed": (1, 1 + 37 * 37, width), "patch_embed.proj.weight": (width, 3, 14, 14)}
    shapes |= {"patch_embed.proj.bias": (width,)}
    return {name: 0.1 * noise(*shape, seed=number) for number, (name, shape) in enumerate(shapes.items())}


@pytest.fixture
def timm(monkeypatch, state) -> list[str]:
    """Which weights were asked for."""
    asked = list[str]()

    def create_model(name: str, *, pretrained: bool, num_classes: int):
        asked.append(name)
        return SimpleNamespace(state_dict=lambda: state)

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    return asked


def test_dinov2_maps_are_of_patches_in_their_places(timm):
    teacher = teachers.patch_teacher("dinov2-s")
    images = torch.full((1, 3, 8, 8), -1.0)
    images[..., 4:] = 1.0
    maps = teacher(images)
    assert timm == ["vit_small_patch14_dinov2.lvd142m"]
    assert maps.shape == (1, 8, 37, 37) and teacher.width == 8 and maps.dtype == torch.float32
    teacher.network.network.patches.positions.data.zero_()
    bare = teacher(images)
    assert not torch.equal(bare, maps)
    left, right = bare[0, :, :, 5], bare[0, :, :, 30]
    torch.testing.assert_close(left, left[:, :1].expand(-1, 37))  # rows are alike where pictures are; columns differ
    assert (left - right).abs().max() > 0.01


def test_dinov2_weights_may_come_from_a_file_and_must_fit(timm, state, tmp_path):
    path = tmp_path / "dino.safetensors"
    save_file(state, path)
    images = noise(2, 3, 16, 16).clamp(-1, 1)
    from_file, from_timm = (
        teachers.whole_picture_teacher("dinov2-s", str(path)),
        teachers.whole_picture_teacher("dinov2-s"),
    )
    assert timm == ["vit_small_patch14_dinov2.lvd142m"]
    assert torch.equal(from_file(images), from_timm(images))
    save_file({name: value for name, value in state.items() if name != "norm.bias"}, path)
    with pytest.raises(ValueError, match="norm"):
        teachers.patch_teacher("dinov2-s", str(path))


def test_without_timm_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    for teacher in (teachers.patch_teacher, teachers.whole_picture_teacher):
        with pytest.raises(ImportError, match=r"pip install imgtok\[teachers\], or give a file of its weights"):
            teacher("dinov2-l")


def test_a_class_token_is_a_map_of_one_place():
    config = teachers.dinov2_config("dinov2-s")
    features = replace(config, vit=replace(config.vit, width=12, depth=1, num_heads=2)).build()
    images = noise(2, 3, 28, 42)  # fewer patches than it was trained on
    found = features(images)
    torch.testing.assert_close(ClassToken(features)(images)[:, :, 0, 0], found.whole)
    maps = PatchMap(features)(images)
    assert maps.shape == (2, 12, 2, 3)
    torch.testing.assert_close(maps[:, :, 1, 2], found.patches[:, 1, 2])


def test_a_classifier_stands_in_for_dinov2():
    pytest.importorskip("efficientnet_lite_pytorch")
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for teacher, shape in (
        (teachers.patch_teacher("efficientnet-lite0"), (1, 112, 14, 14)),
        (teachers.whole_picture_teacher("efficientnet-lite0"), (1, 320, 7, 7)),
    ):
        seen = teacher(images)
        assert seen.shape == shape and teacher.width == shape[1] and seen.std() > 0.01


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
