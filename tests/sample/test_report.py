import base64
import json
import re
import shlex
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from imgtok import config
from imgtok.data import grid, read_picture, save_png
from imgtok.sample.report import write_report
from imgtok.train.recipes import GENERATORS, TOKENIZERS
from imgtok.train.tasks import pairs

METRICS: dict[str, Any] = {
    "tokenizer": {
        "val_psnr": 22.71,
        "code_usage": 0.984,
        "code_perplexity": 430.1,
        "seconds": 140.2,
        "images_per_second": 270.0,
        "steps": 1200,
        "parameters": 1420000,
    },
    "generator": {
        "val_loss": 3.552,
        "seconds": 300.1,
        "sequences_per_second": 110.0,
        "steps": 1000,
        "parameters": 2900000,
    },
    "sample": {
        "seconds_per_image": 0.031,
        "images": 56,
        "seconds": 2.0,
        "guidance": 3.0,
        "temperature": 0.9,
        "top_k": 100,
    },
    "total_seconds": 486.0,
    "device": "cpu",
    "threads": 2,
    "seed": 0,
    "versions": {"imgtok": "0.1.0", "torch": "2.14.1"},
    "machine": "A <fast> machine & more",
    "command": "imgtok quickstart --minutes 8",
}
LABELS = ("Smileys & Emotion", "Food & Drink", "<b>bold</b>")
VOID = ("meta", "img", "br", "link")


def noise(n: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def quickstart(folder: Path) -> Path:
    """A folder as a quickstart leaves it: 3 pairs, 2 samples of each label."""
    config.save(TOKENIZERS["quickstart"](), folder / "tokenizer" / "train.json")
    config.save(GENERATORS["quickstart"](), folder / "generator" / "train.json")
    rows = [{"step": s, "loss": 9 / s, "l1": 5 / s, "l2": 3 / s, "perplexity": 4.0 * s} for s in range(20, 101, 20)]
    write_lines(
        folder / "tokenizer" / "log.jsonl",
        [*rows, {"step": 100, "val_psnr": 22.7, "code_usage": 0.98, "code_perplexity": 400.0}],
    )
    write_lines(folder / "generator" / "log.jsonl", [*rows, {"step": 100, "val_loss": 3.5}])
    save_png(folder / "pictures" / "reconstructions.png", pairs(noise(3), noise(3, seed=1)))
    for number in range(len(LABELS)):
        save_png(folder / "pictures" / "samples" / f"{number:02}.png", grid(noise(2, seed=number), columns=8))
    strips = [{"label": label, "file": f"samples/{number:02}.png"} for number, label in enumerate(LABELS)]
    (folder / "pictures" / "samples.json").write_text(json.dumps(strips), encoding="utf-8")
    (folder / "metrics.json").write_text(json.dumps(METRICS), encoding="utf-8")
    return folder


class Outline(HTMLParser):
    """Checks that every element is closed in its place; keeps tags, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(attrs) == len(dict(attrs)), f"<{tag}> repeats an attribute"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, name: str) -> list[str]:
        """Of an attribute, in all elements."""
        return [value for _, attributes in self.tags if (value := attributes.get(name)) is not None]

    def images(self) -> dict[str, str]:
        """Sources by alternative text."""
        found = [attributes for tag, attributes in self.tags if tag == "img"]
        return {str(attributes["alt"]): str(attributes["src"]) for attributes in found}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quickstart(tmp_path_factory.mktemp("runs") / "my run")


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    path = write_report(folder)
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def outline(page: str) -> Outline:
    return Outline(page)


def test_the_page_needs_nothing_but_itself(page: str, outline: Outline) -> None:
    tags = {tag for tag, _ in outline.tags}
    assert tags.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "audio", "video"})
    assert all(source.startswith("data:image/png;base64,") for source in outline.values("src"))
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    assert not [name for _, attributes in outline.tags for name in attributes if name.startswith("on")]
    for tag, attributes in outline.tags:
        if "href" in attributes:
            assert str(attributes["href"]).startswith("https://github.com/" if tag == "a" else "#")


def test_the_page_is_well_formed_and_ids_are_unique(outline: Outline) -> None:
    assert [tag for tag, _ in outline.tags[:2]] == ["html", "head"]
    ids = outline.values("id")
    assert len(ids) == len(set(ids)) > 0
    used = re.findall(r"#([\w.-]+)", " ".join(outline.values("href")[:-3] + outline.values("clip-path")))
    assert used and set(used) <= set(ids)


def test_the_headline_numbers_stand_on_the_page(outline: Outline) -> None:
    for value in ("22.7dB", "98.4%", "3.55nats", "0.031s", "8.1min", "learned in 8 minutes"):
        assert value in outline.text
    for fact in (
        "512 codes",
        "64 tokens",
        "1,200 steps",
        "1.42 M",
        "2 min 20 s",
        "8 min 6 s",
        "43.7 s",
        "torch 2.14.1",
    ):
        assert fact in outline.text


def test_what_was_given_is_escaped(page: str, outline: Outline) -> None:
    for given in (*LABELS, METRICS["machine"]):
        assert given in outline.text
    assert "Smileys &amp; Emotion" in page and "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "<b>bold" not in page and "<fast>" not in page


def test_the_pictures_are_those_of_the_folder(outline: Outline, tmp_path: Path) -> None:
    sources = [str(attributes["src"]) for tag, attributes in outline.tags if tag == "img"]
    expected = [image for both in zip(noise(3), noise(3, seed=1), strict=True) for image in both]
    expected += [image for number in range(len(LABELS)) for image in noise(2, seed=number)]
    assert len(sources) == len(expected)
    for source, image in zip(sources, expected, strict=True):
        (tmp_path / "a.png").write_bytes(base64.b64decode(source.partition(",")[2]))
        assert torch.equal(read_picture(tmp_path / "a.png"), image)


def test_curves_take_the_colours_of_the_page(page: str, outline: Outline) -> None:
    charts = [attributes["aria-label"] for tag, attributes in outline.tags if tag == "svg"]
    assert charts == ["Tokenizer: error", "Tokenizer: quality", "Tokenizer: codes in use", "Generator: surprise"]
    assert "stroke: var(--blue)" in page and "stroke: var(--orange)" in page and "#01020" not in page
    assert "blind guess, ln 512" in outline.text and "nats per token" in outline.text


def test_settings_are_listed_by_dotted_names(page: str) -> None:
    for name, value in (
        ("tokenizer.backbone", "CNNConfig"),
        ("tokenizer.backbone.encoder_widths", "64, 128"),
        ("tokenizer.quantizer.codebook_size", "512"),
        ("optimizer.lr", "0.002"),
        ("model.drop_labels.subcategory", "0.2"),
        ("model.num_kv_heads", "none"),
        ("data.flip", "true"),
    ):
        assert f"<tr><th>{name}</th><td>{value}</td></tr>" in page


def test_commands_name_the_folder_for_the_shell(page: str, folder: Path) -> None:
    lines = [
        line for block in re.findall(r"<code>(.*?)</code>", page, re.DOTALL) for line in unescape(block).split("\n")
    ]
    words = [shlex.split(line) for line in lines]
    assert words[0][:4] == ["imgtok", "generate", "--model", str(folder.resolve() / "generator")]
    assert words[0][4:6] == ["--label", "category=Food & Drink"]
    assert words[1] == [
        "imgtok",
        "reconstruct",
        "photo.jpg",
        "--model",
        str(folder.resolve() / "tokenizer"),
        "--out",
        "out",
    ]
    assert [line[:4] for line in words[2:]] == [
        ["imgtok", "train", kind, "quickstart"] for kind in ("tokenizer", "generator")
    ]


def test_the_emoji_are_attributed(outline: Outline) -> None:
    for part in ("Noto Color Emoji", "Apache-2.0", "Twemoji", "CC-BY 4.0", "Fluent Emoji", "MIT", "NOTICE"):
        assert part in outline.text


def test_the_same_folder_gives_the_same_bytes(folder: Path, page: str) -> None:
    write_report(folder)
    assert (folder / "report.html").read_text(encoding="utf-8") == page
    assert not list(folder.glob(".report.html*"))


def bare(folder: Path, metrics: object) -> Path:
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return folder


@pytest.mark.parametrize("metrics", [{}, {"total_seconds": 50.0}, {"tokenizer": None, "device": "cuda:0", "seed": 1}])
def test_what_is_missing_is_left_out(tmp_path: Path, metrics: dict[str, Any]) -> None:
    outline = Outline(write_report(bare(tmp_path, metrics)).read_text(encoding="utf-8"))
    assert "What you see" in outline.text and "Try next" in outline.text
    for title in ("Reconstructions", "Learning curves", "Exact settings", "dB", "nan", "None"):
        assert title not in outline.text
    assert not outline.images()


def test_a_run_without_validation_has_the_other_curves(tmp_path: Path) -> None:
    (tmp_path / "generator").mkdir()
    write_lines(tmp_path / "generator" / "log.jsonl", [{"step": 20, "loss": 5.0}, {"step": 40, "loss": float("nan")}])
    with (tmp_path / "generator" / "log.jsonl").open("a") as file:
        file.write('{"step": 60, "lo')
    outline = Outline(write_report(bare(tmp_path, {})).read_text(encoding="utf-8"))
    assert [attributes["aria-label"] for tag, attributes in outline.tags if tag == "svg"] == ["Generator: surprise"]
    assert "trainingvalidation" not in outline.text and "Validation is" not in outline.text
    assert "blind guess" not in outline.text


def test_a_sheet_of_another_layout_is_shown_whole(tmp_path: Path) -> None:
    sheet = grid(noise(4), columns=2, padding=3)
    save_png(tmp_path / "pictures" / "reconstructions.png", sheet)
    config.save(TOKENIZERS["quickstart"](), tmp_path / "tokenizer" / "train.json")
    images = Outline(write_report(bare(tmp_path, {})).read_text(encoding="utf-8")).images()
    assert list(images) == ["reconstructions"]


def test_many_pairs_are_all_on_the_page_most_of_them_behind_a_click(tmp_path: Path) -> None:
    save_png(tmp_path / "pictures" / "reconstructions.png", pairs(noise(36), noise(36, seed=1)))
    config.save(TOKENIZERS["quickstart"](), tmp_path / "tokenizer" / "train.json")
    page = write_report(bare(tmp_path, {})).read_text(encoding="utf-8")
    first, _, rest = page.partition("<summary>24 more")
    assert first.count("<img") == 2 * 12 and rest.count("<img") == 2 * 24
    assert len(set(Outline(page).values("src"))) == 2 * 36


def test_blank_places_of_a_sheet_are_not_shown(tmp_path: Path) -> None:
    save_png(tmp_path / "pictures" / "a.png", grid(noise(5), columns=3))
    (tmp_path / "pictures" / "samples.json").write_text('[{"label": "x", "file": "a.png"}, {"label": "y"}]')
    config.save(TOKENIZERS["quickstart"](), tmp_path / "tokenizer" / "train.json")
    images = Outline(write_report(bare(tmp_path, {})).read_text(encoding="utf-8")).images()
    assert list(images) == [f"x, sample {number}" for number in range(1, 6)]


def test_other_pictures_are_not_attributed_to_the_emoji(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "train.json").write_text('{"data": {"source": "holidays"}}')
    text = Outline(write_report(bare(tmp_path, {})).read_text(encoding="utf-8")).text
    assert "holidays" in text and "Twemoji" not in text


def test_a_folder_without_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no metrics\.json.* imgtok quickstart"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("content", "reason"), [("{", "not valid JSON"), ("[]", "holds a list, expected a dict")])
def test_broken_metrics_are_refused(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match=reason):
        write_report(tmp_path)
