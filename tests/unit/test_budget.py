"""What is promised of files: none is long, ruff is clean, scripts parse, all is packaged."""

from __future__ import annotations

import configparser
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_LINES = 400


def sources() -> list[Path]:
    folders = ("ds_llama", "tests", "launch", "benchmarks")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def scripts() -> list[Path]:
    launch = ROOT / "launch"
    return [*sorted(launch.glob("*.sh")), *launch.glob("*.sbatch"), ROOT / ".ci" / "run"]


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_no_file_is_longer_than_400_lines() -> None:
    lines = {path: path.read_text().count("\n") for path in sources()}
    assert {str(p.relative_to(ROOT)): n for p, n in lines.items() if n > MOST_LINES} == {}


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=" ".join)
def test_ruff(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "ruff", *arguments, "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", scripts(), ids=lambda path: path.name)
def test_scripts_parse_and_stop_at_the_first_failure(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert "set -euo pipefail" in script.read_text()
    assert script.stat().st_mode & 0o100
    assert len(script.read_text().splitlines()) < 80


def test_every_room_is_packaged() -> None:
    listed = set(setup()["options"]["packages"].split()) - {
        "ds_llama._docs",
        "ds_llama._ds_configs",
        "ds_llama._launch",
    }
    folders = {path.parent for path in (ROOT / "ds_llama").rglob("*.py")}
    assert listed == {".".join(folder.relative_to(ROOT).parts) for folder in folders}


def test_every_strict_room_is_type_checked() -> None:
    strict = {"config", "planner", "data", "launcher", "commit"}
    there = {room for room in strict if any((ROOT / "ds_llama" / room).glob("*.py"))}
    checked = {name.strip() for name in setup()["mypy"]["files"].split(",")}
    assert {f"ds_llama/{room}" for room in there} <= checked


def test_constraints_cover_every_requirement() -> None:
    options = setup()
    wanted = options["options"]["install_requires"].splitlines()
    wanted += options["options.extras_require"]["test"].splitlines()
    wanted += [options["options.extras_require"]["tensorboard"]]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower() for line in lines if "==" in line}
    assert {line.split()[0].lower() for line in wanted if line.strip()} <= pinned
