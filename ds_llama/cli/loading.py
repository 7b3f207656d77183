"""A model from the CHECKPOINT of a command line, for the commands that ask it something."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ds_llama.evals.load import Loaded, Step

EmaOption = Annotated[
    bool, typer.Option("--ema", help="Take the averaged weights of a training checkpoint.")
]


def load_for_inference(path: Path, *, ema: bool = False) -> Loaded:
    """`evals.load.load_for_inference` for exports and for training checkpoints.

    ema: the averaged weights of a training checkpoint instead of those that were trained.
    """
    from ds_llama.evals import load

    if ema:
        path = step_with_average(path)
    return load.load_for_inference(path, read_step=partial(_read_step, ema=ema))


def step_with_average(path: Path) -> Path:
    """The step folder that CHECKPOINT means when `--ema` is given, for only those have averages."""
    from ds_llama.commit import listing
    from ds_llama.errors import CallError

    found = listing.find(path)
    if found.kind == "export":
        raise CallError(
            "--ema needs a training checkpoint, and this is an exported folder",
            where=str(found.path),
            remedy="give a run, checkpoints or step folder, or leave --ema out "
            "(OUTPUT/export-ema holds averaged weights itself)",
        )
    return found.path


def _read_step(folder: Path, *, ema: bool) -> Step:
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
        offline.weights_of(folder, saved, ema=ema),
        getattr(torch, saved["dtype"]),
        Path(tokenizer) if tokenizer else None,
    )
