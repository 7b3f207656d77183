"""Weights of a committed step folder, read without a process group and without its world size."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ds_llama.checkpoint import averages
from ds_llama.checkpoint import state as states
from ds_llama.commit.verify import require_whole
from ds_llama.config.model import LlamaConfig
from ds_llama.weights import skeleton
from ds_llama.weights.tensorfile import Spec
from ds_llama.weights.write import MAX_SHARD_BYTES, write_folder


def export_step(
    checkpoint: str | Path,
    out: str | Path,
    *,
    dtype: torch.dtype | None = None,
    ema: bool = False,
    tokenizer: Any = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write a step folder's weights to `out` as Hugging Face safetensors.

    dtype: the run's training dtype by default; fp32 gives the master weights themselves.
    ema: the averaged weights instead.
    tokenizer: the run's own by default, if it is still there. Holds the master weights of the whole
    model. Nothing is unpickled before every file's size and hash are the manifest's. Raises
    CheckpointError for a damaged checkpoint or one without an average, ModelError when it is no
    LLaMA.
    """
    folder = Path(checkpoint)
    require_whole(folder)
    state = states.read(folder)
    config = LlamaConfig.from_hf(state["model"])
    masters = averages.read(folder, state) if ema else read_masters(folder, state["stage"])
    specs = skeleton.specs_of(config, dtype or getattr(torch, state["dtype"]))
    shapes = {name: tuple(tensor.shape) for name, tensor in masters.items()}
    skeleton.require_same(specs, shapes, folder)
    tokenizer = tokenizer or _tokenizer_of(state)
    tensors = _in_order(masters, specs)
    return write_folder(
        out, config, specs, tensors, tokenizer=tokenizer, max_shard_bytes=max_shard_bytes
    )


def read_masters(folder: Path, stage: int) -> dict[str, Any]:
    """fp32 master weights by name, from DeepSpeed's files of any stage and world size.

    A value has `shape`, and `contiguous()` that gives the tensor: at stage 3 it is put together
    only then. Unpickles: verify the folder first.
    """
    if stage == 0:
        file = folder / "mp_rank_00_model_states.pt"
        found = torch.load(file, map_location="cpu", mmap=True, weights_only=False)
        return dict(found["module"])
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    # It reports its progress on stdout, where --json wants one document and nothing else.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return dict(
            get_fp32_state_dict_from_zero_checkpoint(
                str(folder.parent), tag=folder.name, lazy_mode=True
            )
        )


def _in_order(
    masters: Mapping[str, Any], specs: Mapping[str, Spec]
) -> Iterator[tuple[str, torch.Tensor]]:
    for name in specs:
        yield name, masters[name].contiguous()


def _tokenizer_of(state: Mapping[str, Any]) -> str | None:
    path = state.get("run", {}).get("data", {}).get("tokenizer")
    return path if path and Path(path).exists() else None
