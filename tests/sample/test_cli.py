"""The command line: what it prints, what it returns, and that it answers at once."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest

import imgtok
from imgtok.sample import cli


@dataclass
class Seen:
    """What a command was called with."""

    calls: list[tuple[int, str]]


@pytest.fixture
def fake(monkeypatch) -> Seen:
    """A command `double-it N --name NAME`."""
    seen = Seen([])

    def double_it(number: int, /, name: str = "nobody") -> None:
        """Doubles a number.

        Args:
            number: What to double.
            name: Who asks.
        """
        if number < 0:
            raise ValueError("number must be 0 or more, got -1; leave out the sign")
        seen.calls.append((2 * number, name))

    monkeypatch.setitem(cli.COMMANDS, "double-it", ("somewhere:double_it", "doubles a number"))
    monkeypatch.setattr(cli, "find", lambda name: double_it)
    return seen


def failing(error: BaseException):
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize("words", [["--help"], ["-h"]])
def test_help_lists_every_command(capsys, words):
    assert cli.main(words) == 0
    told = capsys.readouterr()
    assert told.err == ""
    for name, (_, text) in cli.COMMANDS.items():
        assert any(
            line.split(None, len(name.split()))[:-1] == name.split() and text in line
            for line in told.out.splitlines()
            if line.startswith("  ")
        )


def test_nothing_asked_is_help_and_an_error(capsys):
    assert cli.main([]) == 2
    assert "commands:" in capsys.readouterr().out


def test_the_version_is_told(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{imgtok.__version__}\n"


@pytest.mark.parametrize(
    ("word", "nearest"),
    [("generat", "generate"), ("recontsruct", "reconstruct"), ("quick-start", "quickstart"), ("trian", "train")],
)
def test_an_unknown_command_is_told_with_the_nearest(capsys, word, nearest):
    assert cli.main([word, "--out", "x"]) == 2
    told = capsys.readouterr()
    assert told.err == f"imgtok: there is no command {word!r}; did you mean {nearest!r}?\n"
    assert told.out == ""


def test_an_unknown_command_like_no_other_points_to_the_help(capsys):
    assert cli.main(["xyzzy"]) == 2
    assert capsys.readouterr().err == "imgtok: there is no command 'xyzzy'; see imgtok --help\n"


@pytest.mark.parametrize("words", [["train"], ["train", "generater"], ["train", "--out", "x"]])
def test_half_a_command_asks_for_the_other_half(capsys, words):
    assert cli.main(words) == 2
    assert capsys.readouterr().err == "imgtok: say which: train generator or posttrain or tokenizer\n"


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_half_a_command_lists_its_halves(capsys, flag):
    assert cli.main(["train", flag]) == 0
    told = capsys.readouterr()
    assert "train tokenizer" in told.out and "train generator" in told.out
    assert "reconstruct" not in told.out
    assert told.err == ""


def test_a_command_gets_its_options(fake):
    assert cli.main(["double-it", "21", "--name", "me"]) == 0
    assert cli.main(["double-it", "1"]) == 0
    assert fake.calls == [(42, "me"), (2, "nobody")]


def test_help_of_a_command_shows_its_options_and_defaults(fake, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["double-it", "--help"])
    assert not stop.value.code
    told = " ".join(capsys.readouterr().out.split())
    assert "usage: imgtok double-it" in told
    assert "Doubles a number." in told and "Who asks. (default: nobody)" in told
    assert fake.calls == []


def test_a_mistyped_option_is_told_with_the_nearest(fake, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["double-it", "1", "--nam", "me"])
    assert stop.value.code == 2
    assert "--name" in capsys.readouterr().err
    assert fake.calls == []


def test_bad_input_is_one_line_and_status_two(fake, capsys):
    assert cli.main(["double-it", "--", "-1"]) == 2
    assert capsys.readouterr().err == "imgtok double-it: number must be 0 or more, got -1; leave out the sign\n"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("no such preset"), 2, "imgtok presets: no such preset\n"),
        (OSError("disk full"), 1, "imgtok presets: disk full\n"),
        (ImportError("pip install 'imgtok[bench]'"), 1, "imgtok presets: pip install 'imgtok[bench]'\n"),
        (KeyboardInterrupt(), 130, "imgtok presets: interrupted\n"),
    ],
)
def test_failures_have_a_line_and_a_status(monkeypatch, capsys, error, status, line):
    monkeypatch.setattr(cli, "find", lambda name: failing(error))
    assert cli.main(["presets"]) == status
    assert capsys.readouterr().err == line


def test_a_programming_error_is_not_hidden(monkeypatch):
    monkeypatch.setattr(cli, "find", lambda name: failing(TypeError("our mistake")))
    with pytest.raises(TypeError, match="our mistake"):
        cli.main(["presets"])


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_exists_and_says_what_it_does(name):
    command = cli.find(name)
    assert callable(command)
    assert command.__doc__


def test_modules_run_the_same_command_line():
    for module in ("imgtok.__main__", "imgtok.sample.__main__"):
        done = subprocess.run(
            [sys.executable, "-m", module.removesuffix(".__main__"), "--version"], capture_output=True
        )
        assert done.stdout.decode().strip() == imgtok.__version__


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train", "--help"], ["train"], ["generat"]])
def test_answers_that_need_no_model_import_none(words):
    """In a fresh process: only the standard library and the command line itself."""
    script = (
        "import sys\n"
        "from imgtok.sample.cli import main\n"
        f"main({words!r})\n"
        "heavy = {'torch', 'numpy', 'PIL', 'tyro', 'safetensors', 'huggingface_hub', 'einops'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
