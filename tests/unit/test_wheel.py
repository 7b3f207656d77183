"""The wheel has all that is shipped, and `ds-llama init` works from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """The wheel's content. Built from a copy: a build in the checkout would leave files there."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("ds_llama", "ds_configs", "launch"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(repository / name, folder / "source" / name, ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        if (repository / name).exists():
            shutil.copy(repository / name, folder / "source" / name)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*build, "-w", str(folder), str(folder / "source")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    [wheel] = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "unpacked")
    return folder / "unpacked"


def test_everything_shipped_is_in_it(unpacked: Path, repository: Path) -> None:
    def shipped(folder: str, pattern: str, inside: Path) -> set[str]:
        found = (repository / folder).rglob(pattern)
        return {str(inside / path.relative_to(repository / folder)) for path in found}

    wanted = shipped("ds_llama", "*.py", Path("ds_llama"))
    wanted |= shipped("ds_llama/config", "*.json", Path("ds_llama/config"))
    wanted |= shipped("ds_configs", "*.json", Path("ds_llama/_ds_configs"))
    wanted |= {"ds_llama/py.typed", "ds_llama/_launch/quickstart.sh"}
    there = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert wanted <= there
    assert {path.split("/")[0] for path in there if "dist-info" not in path} == {"ds_llama"}


def test_init_and_shipped_names_work_from_it(unpacked: Path, tmp_path: Path) -> None:
    code = (
        "import sys, ds_llama; from ds_llama.cli.main import main;"
        "from ds_llama.config import shipped;"
        "print(ds_llama.__file__); print(shipped.folder()); print(shipped.names());"
        "sys.exit(main(['init', 'mine']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    file, folder, names, *_ = done.stdout.splitlines()
    assert Path(file) == unpacked / "ds_llama" / "__init__.py"
    assert Path(folder) == unpacked / "ds_llama" / "_ds_configs"
    assert "'zero2'" in names
    assert (tmp_path / "mine" / "ds_configs" / "runs" / "quickstart.json").is_file()
    assert (tmp_path / "mine" / "launch" / "quickstart.sh").is_file()
