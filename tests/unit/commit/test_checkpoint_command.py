from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds_llama.cli.main import main
from ds_llama.commit.lock import RunLock


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
        "damaged": ["step-00000002"],
        "left_by_kills": [],
    }
    assert main(["checkpoint", "prune", str(run), "--keep-last", "1"]) == 0
    expected = "removed none; kept step-00000002 (damaged), step-00000003\n"
    assert capsys.readouterr().out == expected


def test_prune_removes_what_a_kill_left_but_not_what_is_being_saved(
    run: Path, stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage(run / "checkpoints", 4)
    (run / "checkpoints" / "step-00000003").rename(run / "checkpoints/.replaced-step-00000003")
    for name in (".removing-step-00000001", ".staging-mine", "x.staging-step-00000001"):
        (run / "checkpoints" / name).mkdir()

    def pruned() -> list[str]:
        assert main(["checkpoint", "prune", str(run), "--json"]) == 0
        found: list[str] = json.loads(capsys.readouterr().out)["left_by_kills"]
        return found

    assert pruned() == []  # no run has ever held this folder: who saves there is not known
    with RunLock(run):
        assert pruned() == []
    left = [".removing-step-00000001", ".replaced-step-00000003", ".staging-step-00000004"]
    assert pruned() == left
    names = {path.name for path in (run / "checkpoints").iterdir() if path.is_dir()}
    assert not names & {*left}
    assert {"step-00000003", ".staging-mine", "x.staging-step-00000001"} <= names
    stage(run / "checkpoints", 4)
    assert main(["checkpoint", "prune", str(run)]) == 0
    said = capsys.readouterr().out
    assert ".staging-step-00000004 was left by a run that was killed, and is put right" in said


def test_prune_reads_what_it_keeps_before_it_removes_the_rest(
    run: Path, commit, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flipped bit, which no size shows, in the newest: the one before has to stay."""
    file = commit(4) / "rank_0.pt"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    assert main(["checkpoint", "prune", str(run), "--keep-last", "1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "step-00000004 is damaged: rank_0.pt (written by rank 0) has other content than when it "
        "was saved",
        "removed step-00000001; kept step-00000002 (damaged), step-00000003, "
        "step-00000004 (damaged)",
    ]


@pytest.mark.parametrize("command", ["list", "prune"])
def test_one_checkpoint_is_not_a_folder_of_them(
    run: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert main(["checkpoint", command, str(run / "checkpoints" / "step-00000003")]) == 2
    error = capsys.readouterr().err
    assert "error: this is one checkpoint, not a folder of them" in error
    assert f"remedy: give {run / 'checkpoints'}, or ask about this one with" in error


def test_folders_that_a_disk_or_a_person_has_spoilt(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is listed as damaged, and `verify` says why; nothing ends in a traceback."""
    root = run / "checkpoints"
    spoilt = {
        "step-00000005": "{",
        "step-00000006": "[]",
        "step-00000007": '{"sha256": 1, "format": "2"}',
        "step-00000008": None,
        "step-00000009": (root / "step-00000003" / "MANIFEST.json").read_text(),
    }
    for name, text in spoilt.items():
        (root / name).mkdir()
        (root / name / "loop").symlink_to("loop")
        if text is not None:
            (root / name / "MANIFEST.json").write_text(text)
    (root / "step-00000010").write_text("a file")
    (root / "latest").write_bytes(b"\xff")
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["checkpoint", "list", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[-6:]] == ["damaged"] * 6
    assert all(len(line) <= 40 for line in lines)
    assert main(["checkpoint", "verify", str(run)]) == 1
    out = capsys.readouterr().out
    assert out.count("MANIFEST.json is damaged") == 3
    assert "MANIFEST.json is missing: the checkpoint was never sealed" in out
    assert "MANIFEST.json is of step 3, the folder says 9" in out
    assert main(["checkpoint", "verify", str(root / "step-00000010")]) == 2
    assert "error: this is not a folder" in capsys.readouterr().err


def test_a_checkpoint_of_another_run_is_damaged(
    run: Path, tmp_path: Path, commit, capsys: pytest.CaptureFixture[str]
) -> None:
    commit(5, root=tmp_path / "other").rename(run / "checkpoints" / "step-00000005")
    assert main(["checkpoint", "list", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoints"][-1]["complete"] is False
    assert main(["checkpoint", "verify", str(run / "checkpoints" / "step-00000005")]) == 1
    assert "step-00000005: 1 problem\n  MANIFEST.json is of run " in capsys.readouterr().out


def test_an_empty_folder_and_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("list", "prune"):
        assert main(["checkpoint", command, str(tmp_path)]) == 0
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
    (tmp_path / "file").write_text("")
    assert main(["checkpoint", "list", str(tmp_path / "file")]) == 2
    assert "error: this is not a folder" in capsys.readouterr().err
