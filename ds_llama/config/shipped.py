"""The files that come with the package: DeepSpeed configurations, whole runs, codes of lint."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent.parent


def folder() -> Path:
    """`ds_configs`: package data of the wheel, or the folder of a checkout."""
    inside = _PACKAGE / "_ds_configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "ds_configs"


def names() -> list[str]:
    """Names that `"deepspeed": NAME` understands, sorted: `zero2` is `ds_configs/zero2.json`."""
    return sorted(path.name.removesuffix(".json") for path in folder().glob("*.json"))


def find(name: str) -> Path | None:
    """The shipped DeepSpeed JSON of that name, or None."""
    return folder() / f"{name}.json" if name in names() else None


def runs() -> list[Path]:
    """The shipped run JSONs, sorted."""
    return sorted((folder() / "runs").glob("*.json"))


def codes() -> Path:
    """The page that tells what each code of `ds-llama lint` means."""
    inside = _PACKAGE / "_docs"
    return (inside if inside.is_dir() else _PACKAGE.parent / "docs") / "lint.md"
