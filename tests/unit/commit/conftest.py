from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ds_llama.commit import manifest, names, protocol

Commit = Callable[..., Path]
Stage = Callable[..., list[manifest.Entry]]


def _stage(root: Path, step: int, *, world_size: int = 2, text: str = "") -> list[manifest.Entry]:
    """Write what two ranks would write, and return their entries."""
    folder = protocol.begin(root, names.step_name(step))
    found: list[manifest.Entry] = []
    for rank in range(world_size):
        (folder / f"rank_{rank}.pt").write_text(f"step {step} rank {rank} {text}" * 9)
        found += manifest.entries(folder, [f"rank_{rank}.pt"], rank=rank)
    (folder / "state.json").write_text("{}")
    return found + manifest.entries(folder, ["state.json"])


@pytest.fixture
def commit(tmp_path: Path) -> Commit:
    """commit(step) seals a small checkpoint under tmp_path / "checkpoints"; returns its folder."""

    def run(step: int, *, root: Path = tmp_path / "checkpoints", text: str = "") -> Path:
        files = _stage(root, step, text=text)
        meta = {"step": step, "world_size": 2, "stage": 3}
        return protocol.seal(root, names.step_name(step), files, meta)

    return run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture(scope="session")
def stage() -> Stage:
    """stage(root, step) writes what two ranks would write, unsealed, and returns its entries."""
    return _stage
