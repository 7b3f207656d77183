"""`ds-llama init`: configs, launch scripts and a first run in a folder of one's own."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from ds_llama.config import shipped
from ds_llama.errors import CallError

_PACKAGE = Path(__file__).parent.parent
# Setting up .venv and testing the package are a checkout's business.
_SCRIPTS = ("quickstart.sh", "finetune.sh", "slurm.sbatch")


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="an empty or a new folder")],
) -> None:
    """Write ds_configs/, launch/ and a first run into a folder. Nothing is overwritten."""
    written = write(folder)
    print(f"wrote {len(written)} files into {folder.resolve()}")
    print("first run: bash launch/quickstart.sh")
    if shutil.which("ds-llama") is None:
        print(f"ds-llama is not on PATH: add {Path(sys.executable).parent}")


def write(folder: Path) -> list[Path]:
    """Write the files; their paths. Raises CallError when one of them is there, or `folder` is
    a file."""
    copies = {folder / target: source for target, source in _files().items()}
    if folder.exists() and not folder.is_dir():
        raise CallError(
            f"{folder} is a file", where=str(folder), remedy="give an empty or a new folder"
        )
    there = [str(target.relative_to(folder)) for target in copies if target.exists()]
    if there:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise CallError(
            f"{there[0]}{more} would be overwritten",
            where=str(folder),
            remedy="give an empty folder, or move those files away",
        )
    for target, source in copies.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return list(copies)


def _files() -> dict[Path, Path]:
    """What is written, relative to the folder, and where it is copied from."""
    configs, scripts = shipped.folder(), _scripts()
    found = {
        Path("ds_configs", source.relative_to(configs)): source
        for source in sorted([*configs.glob("*.json"), *configs.glob("runs/*.json")])
    }
    return found | {Path("launch", name): scripts / name for name in _SCRIPTS}


def _scripts() -> Path:
    """`launch`: package data of the wheel, or the folder of a checkout."""
    inside = _PACKAGE / "_launch"
    return inside if inside.is_dir() else _PACKAGE.parent / "launch"
