import pytest

from imgtok import config
from imgtok.train.recipes import TOKENIZERS


@pytest.fixture
def folder(tmp_path):
    config.save(TOKENIZERS["quickstart"](), tmp_path / "run" / "train.json")
    return tmp_path / "run"


def test_a_page_is_written_beside_the_run_or_where_it_is_wanted(run, folder, tmp_path):
    result = run("report", folder)
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith(f"{folder / 'report.html'}: ") and (folder / "report.html").is_file()
    result = run("report", folder, "--out", tmp_path / "new" / "page.html")
    assert result.status == 0
    assert (tmp_path / "new" / "page.html").read_text() == (folder / "report.html").read_text()


def test_a_folder_without_runs_is_refused(run, tmp_path):
    result = run("report", tmp_path)
    assert result.status == 2 and result.out == ""
    assert result.err.startswith(f"imgtok report: {tmp_path} holds nothing to report; looked for")
