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


@pytest.mark.parametrize("path", ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])
def test_links_between_documents_lead_somewhere(path):
    page = ROOT / path
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{path} links to {target}"
