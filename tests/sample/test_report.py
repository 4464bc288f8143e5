import base64
import json
import re
import shlex
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from imgtok import config
from imgtok.data import grid, read_picture, save_png
from imgtok.data.pictures import to_pillow
from imgtok.sample.commands.train import earlier_run
from imgtok.sample.report import write_report
from imgtok.sample.report.find import KINDS
from imgtok.sample.report.pictures import jpeg_within
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
HOSTILE = '"><script>alert(1)</script>&$x_{'


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
    losses = [{"step": row["step"], "loss": row["loss"], "cross_entropy": row["loss"]} for row in rows]
    write_lines(folder / "generator" / "log.jsonl", [*losses, {"step": 100, "val_loss": 3.5}])
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
    local = [value for value in outline.values("href") if value.startswith("#")]
    used = re.findall(r"#([\w.-]+)", " ".join(local + outline.values("clip-path")))
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
    assert charts == ["Tokenizer: losses", "Tokenizer: quality", "Tokenizer: codes in use", "Generator: surprise"]
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
    assert words[-1] == ["imgtok", "report", str(folder.resolve())]
    assert [line[:4] for line in words[2:-1]] == [
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


@pytest.mark.parametrize(("content", "reason"), [("{", "not valid JSON"), ("[]", "holds a list, expected a dict")])
def test_broken_metrics_are_refused(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match=reason):
        write_report(tmp_path)


def made(kind: str) -> Any:
    recipes: Any = {"tokenizer": TOKENIZERS, "generator": GENERATORS}[kind]
    return recipes["quickstart"]()


def log(steps: int, name: str) -> list[dict[str, Any]]:
    """Of a training at 8 pictures a step and 40 a second, validated every tenth step."""
    rows: list[dict[str, Any]] = []
    for step in range(5, steps + 1, 5):
        losses = {"loss": 20 / step, "l1": 19 / step, "commitment": 0.01, "grad_norm": 1.0}
        speed = {"rows": 8 * step, "lr": 1e-3, "rows_per_second": 40.0}
        rows.append({"step": step, **losses, **speed, "perplexity": 30.0, "codes_used": 60.0})
        rows += [{"step": step, name: 20 - 10 / step}] if step % 10 == 0 else []
    return rows


def training(folder: Path, kind: str = "tokenizer", done: int = 40, steps: int = 40, seed: int = 0) -> Path:
    """A run as `imgtok train` leaves it after `done` of its steps."""
    recipe = made(kind)
    config.save(replace(recipe, loop=replace(recipe.loop, steps=steps, seed=seed)), folder / "train.json")
    write_lines(folder / "log.jsonl", log(done, "val_psnr" if kind == "tokenizer" else "val_loss"))
    for step in range(10, done + 1, 10):
        save_png(folder / "previews" / f"step-{step:08d}.png", pairs(noise(2, seed=step), noise(2, seed=step + 1)))
    if done == steps:
        (folder / "model.safetensors").write_bytes(b"")
    return folder


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path.parent


def evaluation(folder: Path) -> Path:
    scores = {
        "rFID": {"value": 12.345, "floor": 3.25},
        "PSNR": {"value": 21.5, "error": 0.125, "error_of": "deviation"},
    }
    recipe = {"tokenizer": "runs/tok", "images": 1234, "extractor": {"name": "inception"}}
    codes = [{"codes": 500, "usage": 0.9766, "entropy": 8.5, "perplexity": 362.0}]
    content = {
        "kind": "tokenizer",
        "scores": scores,
        "recipe": recipe,
        "codebooks": codes,
        "versions": {"torch": "9.9"},
    }
    save_png(folder / "tokens.png", noise(1)[0])
    return write_json(folder / "evaluation.json", content)


def samples(folder: Path, label: str = "Food & Drink") -> Path:
    images = [{"file": f"{i:05d}.png", "condition": {"category": label}} for i in range(3)]
    for i, image in enumerate(noise(3)):
        save_png(folder / f"{i:05d}.png", image)
    law = {"guidance": {"scale": 3.5}, "law": {"temperature": 0.75, "top_k": 0}}
    return write_json(folder / "samples.json", {"model": "runs/gen", "seed": 17, **law, "images": images})


def distortion(folder: Path) -> Path:
    points = [
        {"label": "9", "means": {"bits": bits, "bytes": 9.0, "psnr": 30 + bits, "ssim": 0.5}} for bits in (0.5, 2)
    ]
    curves = {"JPEG": points, "runs/tok": [{"bits": 0.123, "psnr": 22.25, "ssim": 0.75}]}
    return write_json(folder / "rate-distortion.json", {"photos": {"pictures": 15, "curves": curves}})


def bench(folder: Path) -> Path:
    rows = [{"name": "plain", "images_per_second": 1.625, "peak_bytes": None}]
    return write_json(folder / "speed.json", {"machine": {"cpu": "Fast"}, "settings": {"model": "m"}, "rows": rows})


def reconstructions(folder: Path) -> Path:
    save_png(folder / "comparison.png", grid(noise(4), columns=2))
    save_png(folder / "sub" / "a.png", noise(1)[0])
    return folder


MADE: dict[str, tuple[Any, tuple[str, ...]]] = {
    "metrics.json": (quickstart, ("22.7dB", "learned in 8 minutes")),
    "train.json": (training, ("19.75dB", "40steps", "8s", "40/ s", "after step 40", "3 earlier", "loop.batch_size")),
    "evaluation.json": (
        evaluation,
        ("12.345", "3.25", "21.5", "0.125", "deviation", "1,234", "362", "inception", "9.9"),
    ),
    "rate-distortion.json": (distortion, ("JPEG", "0.123", "22.25", "0.75", "bits a pixel", "15 pictures")),
    "samples.json": (samples, ("Food & Drink", "3.5", "0.75", "17", "runs/gen")),
    "comparison.png": (reconstructions, ("1 picture to tokens",)),
    "*.json": (bench, ("1.625", "images per second", "Fast")),
}


def test_every_kind_has_a_case() -> None:
    assert list(MADE) == [kind.file for kind in KINDS]


def check_stands_alone(text: str) -> Outline:
    """Well-formed, and nothing is loaded from anywhere."""
    outline = Outline(text)
    assert {tag for tag, _ in outline.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "video"})
    assert all(re.match("data:image/(png|jpeg);base64,", source) for source in outline.values("src"))
    assert not re.search(r"url\((?!#)", text) and "@import" not in text
    ids = outline.values("id")
    assert len(ids) == len(set(ids))
    return outline


@pytest.mark.parametrize("name", MADE)
def test_every_kind_of_folder_is_drawn_with_its_numbers(tmp_path: Path, name: str) -> None:
    make, numbers = MADE[name]
    outline = check_stands_alone(write_report(make(tmp_path / "a run")).read_text(encoding="utf-8"))
    for number in numbers:
        assert number in outline.text
    assert "Side by side" not in outline.text and "nan" not in outline.text and "None" not in outline.text


def test_a_folder_of_folders_is_compared(tmp_path: Path) -> None:
    for number, (make, _) in enumerate(MADE.values()):
        make(tmp_path / "runs" / f"{number}")
    training(tmp_path / "runs" / "deep" / "er" / "b", steps=80, done=20, seed=5)
    path = write_report(tmp_path / "runs", tmp_path / "page.html")
    assert path == tmp_path / "page.html" and not (tmp_path / "runs" / "report.html").exists()
    outline = check_stands_alone(path.read_text(encoding="utf-8"))
    assert sum(tag == "article" for tag, _ in outline.tags) == len(MADE) + 1
    links = {value[1:] for value in outline.values("href") if re.fullmatch(r"#p\d+", value)}
    assert links == {attributes["id"] for tag, attributes in outline.tags if tag == "article"}
    for told in ("Side by side", "40 of 40", "20 of 80", "19.75", "19.5", "deep/er/b", "loop.seed", "settings differ"):
        assert told in outline.text
    assert "Quality, on validation data" in outline.values("aria-label")


def test_an_unfinished_run_is_told_and_its_damaged_lines_are_passed_over(tmp_path: Path) -> None:
    folder = training(tmp_path / "run", done=20, steps=40)
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    lines[1:1] = ["[1]", "{"]
    (folder / "log.jsonl").write_text("\n".join([*lines, '{"step": 25, "lo']), encoding="utf-8")
    text = Outline(write_report(folder).read_text(encoding="utf-8")).text
    assert "20 of 40 steps so far" in text and "--resume" in text and "19.5dB" in text
    assert f"3 lines of log.jsonl could not be read and stayed out: 2, 3, {len(lines) + 1}." in text


@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
def test_the_command_repeats_the_run(tmp_path: Path, kind: str) -> None:
    folder, recipe = training(tmp_path / "my run", kind, seed=3), made(kind)
    lines = [unescape(line) for line in re.findall("<code>(.*?)</code>", write_report(folder).read_text("utf-8"))]
    (words,) = (shlex.split(line) for line in lines if line.startswith("imgtok train"))
    assert words[:4] == ["imgtok", "train", kind, "--config"]
    repeated = earlier_run(Path(words[4]), type(recipe))
    assert repeated == replace(recipe, loop=replace(recipe.loop, steps=40, seed=3))


def test_hostile_names_are_text(tmp_path: Path) -> None:
    folder = tmp_path / "<script>alert(1)<"
    samples(folder / "s", label=HOSTILE)
    training(folder / "<b>run")
    rows = [{"step": step, "loss": 1.0, HOSTILE: 2.0, f"val_{HOSTILE}": 3.0} for step in (1, 2)]
    write_lines(folder / "<b>run" / "log.jsonl", rows)
    scores = {"kind": HOSTILE, "scores": {HOSTILE: {"value": HOSTILE}}, "recipe": {HOSTILE: 1}}
    write_json(folder / "e" / "evaluation.json", scores)
    curve = [{"bits": 1.0, "psnr": 20.0, HOSTILE: 1.0}]
    write_json(folder / "r" / "rate-distortion.json", {HOSTILE: {"pictures": HOSTILE, "curves": {HOSTILE: curve}}})
    write_json(folder / "b.json", {"machine": {HOSTILE: HOSTILE}, "settings": {}, "rows": [{HOSTILE: HOSTILE}]})
    outline = check_stands_alone(write_report(folder).read_text(encoding="utf-8"))
    assert outline.text.count(HOSTILE) > 10 and "<b>run" in outline.text


@pytest.mark.parametrize("name", ["evaluation.json", "rate-distortion.json", "samples.json", "train.json"])
@pytest.mark.parametrize(
    "content", [{}, {"scores": [1], "recipe": 1, "images": {"a": 1}, "loop": [], "x": {"curves": 3}}]
)
def test_files_of_another_shape_do_no_harm(tmp_path: Path, name: str, content: dict[str, Any]) -> None:
    check_stands_alone(write_report(write_json(tmp_path / "a" / name, content)).read_text(encoding="utf-8"))


def test_one_damaged_file_does_not_take_the_others_along(tmp_path: Path) -> None:
    training(tmp_path / "good")
    write_json(tmp_path / "bad" / "evaluation.json", [])
    text = Outline(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "holds a list, expected a dict" in text and "19.75dB" in text


def test_large_pictures_fit_the_page(tmp_path: Path) -> None:
    folder = training(tmp_path / "run", done=80, steps=80)
    sheet = torch.randint(0, 256, (3, 1000, 1000), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for step in range(10, 81, 10):
        save_png(folder / "previews" / f"step-{step:08d}.png", sheet)
    path = write_report(folder)
    assert path.stat().st_size < 8_000_000
    images = list(Outline(path.read_text(encoding="utf-8")).images())
    assert images[0] == "after step 80" and 3 <= len(images) <= 6
    assert len(jpeg_within(to_pillow(sheet), 20_000)) <= 20_000


def test_files_outside_the_folder_are_not_shown(tmp_path: Path) -> None:
    save_png(tmp_path / "secret.png", noise(1)[0])
    images = [{"file": "../secret.png"}, {"file": str(tmp_path / "secret.png")}]
    write_json(tmp_path / "run" / "samples.json", {"images": images})
    assert not Outline(write_report(tmp_path / "run").read_text(encoding="utf-8")).images()


def test_an_unknown_folder_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"holds nothing to report; looked for metrics\.json.*train\.json.*bench"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="is no folder"):
        write_report(tmp_path / "notes.json", tmp_path / "a.html")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.json"]


def test_only_a_report_is_replaced_and_it_stays_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, foreign = training(tmp_path / "run"), tmp_path / "mine.html"
    foreign.write_text("<p>mine</p>")
    with pytest.raises(ValueError, match="is there already and is no report"):
        write_report(folder, foreign)
    before = write_report(folder).read_bytes()
    (folder / "log.jsonl").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="full"):
            write_report(folder)
    assert (folder / "report.html").read_bytes() == before and not list(folder.glob(".*"))
    assert write_report(folder).read_bytes() != before


def fail(*_: Any) -> None:
    raise OSError("full")
