"""`ds-llama init`: what it writes trains, and nothing of the user's is lost."""

from __future__ import annotations

import filecmp
import subprocess
from pathlib import Path

import pytest

import ds_llama
from ds_llama.cli.main import main


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_it_writes_every_shipped_config_and_the_quickstart(
    tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", str(tmp_path / "new")]) == 0
    configs = {f"ds_configs/{name}" for name in names(repository / "ds_configs")}
    scripts = {"launch/quickstart.sh", "launch/finetune.sh", "launch/slurm.sbatch"}
    assert names(tmp_path / "new") == configs | scripts
    for name in names(tmp_path / "new"):
        assert filecmp.cmp(tmp_path / "new" / name, repository / name, shallow=False)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"wrote {len(configs) + 3} files into {tmp_path / 'new'}"
    assert printed[1] == "first run: bash launch/quickstart.sh"


def test_every_run_that_it_writes_is_read(tmp_path: Path) -> None:
    assert main(["init", str(tmp_path)]) == 0
    for path in sorted((tmp_path / "ds_configs" / "runs").glob("*.json")):
        assert ds_llama.load_run(path).path == path


def test_the_script_says_what_is_missing_without_an_installation(tmp_path: Path) -> None:
    assert main(["init", str(tmp_path)]) == 0
    done = subprocess.run(
        ["/bin/bash", "launch/quickstart.sh"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "error: ds-llama is not on PATH"


def test_a_folder_with_other_files_is_fine(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["init", str(tmp_path)]) == 0
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "ds_configs" / "zero2.json"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert main(["init", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: ds_configs/zero2.json would be overwritten",
        f"where: {tmp_path}",
        "remedy: give an empty folder, or move those files away",
    ]
    assert names(tmp_path) == {"ds_configs/zero2.json"}
    assert mine.read_text() == "mine"


def test_a_second_time_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path)]) == 0
    assert main(["init", str(tmp_path)]) == 2
    assert " more would be overwritten" in capsys.readouterr().err


def test_a_file_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["init", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'file'} is a file\n")
