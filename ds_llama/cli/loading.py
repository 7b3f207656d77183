"""A model from the CHECKPOINT of a command line, for the commands that ask it something."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ds_llama.evals.load import Loaded, Step


def load_for_inference(path: Path) -> Loaded:
    """`evals.load.load_for_inference` for exports and for training checkpoints."""
    from ds_llama.evals import load

    return load.load_for_inference(path, read_step=_read_step)


def _read_step(folder: Path) -> Step:
    import torch

    from ds_llama.checkpoint import offline, state
    from ds_llama.commit.verify import require_whole
    from ds_llama.config.model import LlamaConfig
    from ds_llama.evals.load import Step

    # the shards are pickles: nothing is read before their hashes are the manifest's
    require_whole(folder)
    saved = state.read(folder)
    tokenizer = saved["run"]["data"]["tokenizer"]
    return Step(
        LlamaConfig.from_hf(saved["model"]),
        offline.read_masters(folder, saved["stage"]),
        getattr(torch, saved["dtype"]),
        Path(tokenizer) if tokenizer else None,
    )
