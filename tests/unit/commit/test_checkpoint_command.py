from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds_llama.cli.main import main


@pytest.fixture
def run(commit, root: Path) -> Path:
    for step in (1, 2, 3):
        commit(step)
    (root / "step-00000002" / "rank_1.pt").write_text("x")
    return root.parent


@pytest.mark.parametrize("inner", ["", "checkpoints"])
def test_list(run: Path, capsys: pytest.CaptureFixture[str], inner: str) -> None:
    assert main(["checkpoint", "list", str(run / inner), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["latest"] == "step-00000003"
    assert [(c["step"], c["complete"]) for c in found["checkpoints"]] == [
        (1, True),
        (2, False),
        (3, True),
    ]
    assert found["checkpoints"][0].keys() == {
        "name",
        "step",
        "complete",
        "bytes",
        "world_size",
        "stage",
    }


def test_the_table_survives_a_narrow_terminal(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns in ("34", "120"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["checkpoint", "list", str(run)]) == 0
        out = capsys.readouterr().out
        assert all(len(line) <= int(columns) for line in out.splitlines())
        assert "damaged" in out
    assert "step-00000003" in out
    assert "complete, latest" in out


def test_verify_names_what_is_wrong_and_exits_1(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["checkpoint", "verify", str(run)]) == 1
    out = capsys.readouterr().out
    assert "step-00000001: whole" in out
    assert "step-00000002: 1 problem" in out
    assert "rank_1.pt (written by rank 1) has 1 bytes" in out
    assert main(["checkpoint", "verify", str(run), "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["checkpoints"]
    assert [row["whole"] for row in rows] == [True, False, True]
    assert rows[1]["problems"][0]["rank"] == 1
    assert main(["checkpoint", "verify", str(run / "checkpoints" / "step-00000003")]) == 0


def test_prune(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "prune", str(run), "--keep-last", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "removed": ["step-00000001"],
        "kept": ["step-00000002", "step-00000003"],
    }
    assert main(["checkpoint", "prune", str(run), "--keep-last", "1"]) == 0
    assert capsys.readouterr().out == "removed none; kept step-00000002, step-00000003\n"


def test_an_empty_folder_and_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoint", "list", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no checkpoint in {tmp_path}\n"
    assert main(["checkpoint", "list", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"checkpoints": [], "latest": None}
    assert main(["checkpoint", "verify", str(tmp_path)]) == 2
    assert "error: there is no checkpoint to verify" in capsys.readouterr().err
    for command in ("list", "verify", "prune"):
        assert main(["checkpoint", command, str(tmp_path / "step-00000001")]) == 2
        error = capsys.readouterr().err
        assert "error: there is no such folder" in error
        assert "remedy: give a run's output folder" in error
