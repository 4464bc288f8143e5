import json

from imgtok import zoo
from imgtok.generators.presets import PRESETS as GENERATORS
from imgtok.presets import PRESETS as TOKENIZERS
from imgtok.train.recipes import GENERATORS as GENERATOR_RECIPES
from imgtok.train.recipes import TOKENIZERS as TOKENIZER_RECIPES


def test_the_table_has_a_line_for_every_preset_and_recipe(run):
    result = run("presets")
    assert (result.status, result.err) == (0, "")
    names = [*zoo.names(), *TOKENIZERS, *GENERATORS, *TOKENIZER_RECIPES, *GENERATOR_RECIPES]
    assert [line.split()[0] for line in result.out.splitlines() if line.split(" ")[0] in names] == names
    for part in ("71.9 M", "rFID 2.19", "gFID 5.46", "MIT", "FoundationVision/LlamaGen/c2i_B_256.pt", "emoji64"):
        assert part in result.out


def test_columns_are_aligned(run):
    lines = run("presets").out.splitlines()
    start = next(i for i, line in enumerate(lines) if "FILE" in line.split())
    at = lines[start].index("FILE")
    rows = lines[start + 1 : start + 1 + len(TOKENIZERS)]
    assert {line[at - 2 : at] for line in rows} == {"  "}
    repositories = [preset.weights.repo if preset.weights else "-" for preset in TOKENIZERS.values()]
    assert [line[at:][: len(repo)] for line, repo in zip(rows, repositories, strict=True)] == repositories
    assert max(map(len, lines)) <= 120


def test_json_is_for_programs(run):
    groups = json.loads(run("presets", "--json").out)
    assert [row["name"] for row in groups["zoo"]] == list(zoo.names())
    assert all(row["measured"] and row["licence"] for row in groups["zoo"])
    assert [row["name"] for row in groups["tokenizers"]] == list(TOKENIZERS)
    rows = {row["name"]: row for row in groups["generators"]}
    assert list(rows) == list(GENERATORS)
    assert rows["llamagen-gpt-b-256"]["parameters"] == 110_888_448
    assert rows["llamagen-gpt-b-256"]["published"] == {"gfid": 5.46}
    assert rows["llamagen-gpt-xl-256"]["file"] is None
    assert [row["kind"] for row in groups["recipes"]].count("tokenizer") == len(TOKENIZER_RECIPES)
