"""Model sizes as config.json files: a new one is a new file in `presets/` and nothing else."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from ds_llama.config.files import read_object
from ds_llama.config.model import LlamaConfig, from_mapping
from ds_llama.config.problems import did_you_mean
from ds_llama.errors import ConfigError

_FOLDER = Path(__file__).parent / "presets"


def presets() -> list[str]:
    """Names of the model sizes that are shipped, sorted."""
    return sorted(path.name.removesuffix(".json") for path in _FOLDER.glob("*.json"))


@cache
def preset(name: str) -> LlamaConfig:
    """The LlamaConfig of a shipped size; ConfigError with the nearest name when there is none."""
    return from_mapping(raw_preset(name), path=str(_FOLDER / f"{name}.json"), strict=True)


def raw_preset(name: str, *, where: str = "preset") -> dict[str, Any]:
    """The content of a preset's file, for keys to be laid over it."""
    known = presets()
    if name not in known:
        raise ConfigError(
            f"no preset is called {name!r}", where=where, remedy=did_you_mean(name, known)
        )
    return read_object(_FOLDER / f"{name}.json")
