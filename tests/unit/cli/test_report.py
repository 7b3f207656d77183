"""`ds-llama report`: exit codes, messages, what is printed at which width."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from ds_llama.cli.main import main
from tests.unit.bench.report.conftest import changed, measured_rows, timed

# Few plots are drawn of these.
ROWS = [
    changed(row, parts_s=None, memory__predicted=None, losses=row["losses"][:1], name=None)
    for row in measured_rows()[:2]
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.mkdir()
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    """A run, and an earlier one in which the first cell was twice as fast."""
    fast, slow = [0.1, 0.101, 0.1], [0.2, 0.202, 0.2]
    now = write(tmp_path / "now", [timed(ROWS[0], slow), timed(ROWS[1], fast)])
    return now, write(tmp_path / "old", [timed(row, fast) for row in ROWS])


def test_a_table_the_advice_and_the_files(
    folders: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", folders[0]]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    words = " ".join(out.split())
    assert "tiny, 4 x 128 tokens a step" in out
    assert "> zero2" in out
    assert "Take zero2: the fastest at 5," in words
    assert str(Path(folders[0], "report.html")) in out
    assert "beside it: report.md, rows.csv and" in words
    assert max(map(len, out.splitlines()[:4])) <= 100


@pytest.mark.parametrize(("limit", "code"), [("5%", 1), ("60 %", 0)])
def test_fail_on(
    folders: tuple[str, str], capsys: pytest.CaptureFixture[str], limit: str, code: int
) -> None:
    assert main(["report", *folders, "--fail-on", limit, "--json"]) == code
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [change["verdict"] for change in found["comparison"]["changes"]] == [
        "slower",
        "no difference seen",
    ]
    assert found["groups"][0]["recommended"] == "zero2"
    if code:
        assert f"error: worse than old beyond --fail-on {limit}: zero1" in err
        assert "50.0% slower" in err
        assert "report.html" in err
    else:
        assert err == ""


def test_a_gate_that_cannot_judge_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    once = write(tmp_path / "once", [timed(ROWS[0], [0.1])])
    assert main(["report", once, once, "--fail-on", "5%"]) == 1
    assert "can say nothing: too few launches of zero1" in capsys.readouterr().err
    other = write(tmp_path / "other", [timed(ROWS[1], [0.1])])
    assert main(["report", once, other, "--fail-on", "5%"]) == 1
    assert "can say nothing: no cell is in both folders" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["report", "{none}"], "this does not exist"),
        (["report", "{now}", "--fail-on", "5%"], "--fail-on has nothing to compare with"),
        (["report", "{now}", "{old}", "--fail-on", "0.05"], "'0.05' is not a percentage"),
        (["report", "{now}", "{none}"], "this does not exist"),
        (["report"], "Missing argument 'DIR'"),
    ],
)
def test_wrong_calls(
    folders: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    what: str,
) -> None:
    names = {"now": folders[0], "old": folders[1], "none": folders[0] + "-none"}
    assert main([word.format(**names) for word in arguments]) == 2
    err = capsys.readouterr().err
    assert what in err
    assert "remedy: " in err


def test_damaged_rows(folders: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with Path(folders[0], "rows.jsonl").open("a") as file:
        file.write('{"key":')
    assert main(["report", folders[0]]) == 1
    err = capsys.readouterr().err
    assert "the line is not a row" in err
    assert "rows.jsonl:3" in err


def test_narrow_terminals_lose_columns_not_cells(folders: tuple[str, str]) -> None:
    from rich.console import Console

    from ds_llama.bench.report.advise import advise
    from ds_llama.bench.report.folder import read_folder
    from ds_llama.bench.report.groups import groups
    from ds_llama.cli.report_table import fitting

    (group,) = groups(read_folder(Path(folders[0])).cells, {})
    for width in (30, 50, 100):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(fitting(group, advise(group), width))
        text = console.export_text()
        assert "5," in text
        assert "zero1" in text
        assert ("range" in text) == (width == 100)
        assert max(map(len, text.splitlines())) <= width
