"""What is not saved, and how that is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_llama.checkpoint.save import save
from ds_llama.config import load_run
from ds_llama.config.resolve import resolve
from ds_llama.errors import CheckpointError


def test_superoffload_is_not_saved(tmp_path: Path) -> None:
    """Its moments are in another process; the engine is not even asked."""
    tree = {"model": {"preset": "tiny"}, "data": {"train": "x"}}
    resolved = resolve(load_run({**tree, "deepspeed": "zero3_superoffload"}), 1)
    with pytest.raises(CheckpointError, match="cannot resume the moments of SuperOff") as caught:
        save(None, tmp_path / "checkpoints", 1, {}, resolved)
    assert "export the weights" in caught.value.remedy
    assert not (tmp_path / "checkpoints").exists()


def test_nvme_is_saved() -> None:
    tree = {"model": {"preset": "tiny"}, "data": {"train": "x"}, "deepspeed": "zero3_nvme"}
    assert resolve(load_run(tree), 1, device="cpu").unsaved is None
