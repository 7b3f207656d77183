"""The wheel has all that is shipped, and `ds-llama init` works from it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_everything_shipped_is_in_it(unpacked_wheel: Path, repository: Path) -> None:
    def shipped(folder: str, pattern: str, inside: Path) -> set[str]:
        found = (repository / folder).rglob(pattern)
        return {str(inside / path.relative_to(repository / folder)) for path in found}

    wanted = shipped("ds_llama", "*.py", Path("ds_llama"))
    wanted |= shipped("ds_llama/config", "*.json", Path("ds_llama/config"))
    wanted |= shipped("ds_llama/bench", "*.html", Path("ds_llama/bench"))
    wanted |= shipped("ds_llama/data", "*.jinja", Path("ds_llama/data"))
    wanted |= shipped("ds_configs", "*.json", Path("ds_llama/_ds_configs"))
    wanted |= {"ds_llama/_docs/lint.md", "ds_llama/py.typed"}
    wanted |= {
        f"ds_llama/_launch/{name}" for name in ("quickstart.sh", "finetune.sh", "slurm.sbatch")
    }
    there = {
        str(path.relative_to(unpacked_wheel))
        for path in unpacked_wheel.rglob("*")
        if path.is_file()
    }
    assert wanted <= there
    assert {path.split("/")[0] for path in there if "dist-info" not in path} == {"ds_llama"}


def test_init_and_shipped_names_work_from_it(unpacked_wheel: Path, tmp_path: Path) -> None:
    code = (
        "import sys, ds_llama; from ds_llama.cli.main import main;"
        "from ds_llama.config import shipped;"
        "print(ds_llama.__file__); print(shipped.folder()); print(shipped.names());"
        "assert main(['lint', '--explain', 'unknown-key']) == 0;"
        "sys.exit(main(['init', 'mine']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked_wheel)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    file, folder, names, *_ = done.stdout.splitlines()
    assert Path(file) == unpacked_wheel / "ds_llama" / "__init__.py"
    assert Path(folder) == unpacked_wheel / "ds_llama" / "_ds_configs"
    assert "'zero2'" in names
    assert (tmp_path / "mine" / "ds_configs" / "runs" / "quickstart.json").is_file()
    assert (tmp_path / "mine" / "launch" / "quickstart.sh").is_file()
