"""Write a model as a Hugging Face folder, holding one parameter at a time.

plan     names, shapes and dtypes of all tensors, divided into files of at most max_shard_bytes
gather   one parameter (a collective at stage 3), cast, written by rank 0, let go
publish  rename the finished folder to its name, so that a reader never sees a part of it
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ds_llama.config.model import LlamaConfig
from ds_llama.errors import DsLlamaError
from ds_llama.weights.tensorfile import Spec
from ds_llama.weights.write import MAX_SHARD_BYTES, FolderWriter, explained


def export_model(
    model: nn.Module,
    config: LlamaConfig,
    out: str | Path,
    *,
    dtype: torch.dtype | None = None,
    tokenizer: Any = None,
    generation: str | Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write `model` to the folder `out` for `LlamaForCausalLM.from_pretrained`; collective.

    model: plain, or under ZeRO 0-3 (a DeepSpeed engine or its module). dtype: the weights' own by
    default. tokenizer: a folder or file whose tokenizer files are copied, or an object with
    `save(folder)`. generation: a folder whose generation_config.json is taken if it has one. Tied
    parameters are stored once. Rank 0 writes and holds one parameter beyond its own. A former
    export at `out` is replaced. Raises ModelError for a parameter without elements,
    CheckpointError when the disk refuses; on every rank.
    """
    module = getattr(model, "module", model)
    parameters = {
        name.replace("_orig_mod.", ""): parameter for name, parameter in module.named_parameters()
    }
    specs = {name: _spec(parameter, dtype) for name, parameter in parameters.items()}
    folder = None
    problem: DsLlamaError | None = None
    if _rank() == 0:
        try:
            folder = FolderWriter(Path(out), config, specs, tokenizer, max_shard_bytes, generation)
        except (DsLlamaError, OSError) as error:
            problem = explained(error, out)
    try:
        for name, parameter in parameters.items():
            # A rank that cannot write goes on gathering: the others are in the same collective.
            with _gathered(parameter):
                if folder is not None and problem is None:
                    problem = _attempt(partial(folder.add, name, [parameter]), out)
        if folder is not None:
            problem = problem or _attempt(folder.publish, out)
    finally:
        if folder is not None:
            folder.discard()
    _raise_everywhere(problem)
    return Path(out)


def _spec(parameter: nn.Parameter, dtype: torch.dtype | None) -> Spec:
    shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
    return Spec(dtype or parameter.dtype, shape)


def _gathered(parameter: nn.Parameter) -> AbstractContextManager[Any]:
    """The whole parameter in `parameter.data` while the context is open."""
    status = getattr(parameter, "ds_status", None)
    if status is None or status.name == "AVAILABLE":
        return nullcontext()
    import deepspeed  # takes seconds, and only a partitioned parameter needs it

    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([parameter])
    return gathered


def _attempt(action: Callable[[], None], out: str | Path) -> DsLlamaError | None:
    try:
        action()
    except (OSError, DsLlamaError) as error:
        return explained(error, out)
    return None


def _raise_everywhere(problem: DsLlamaError | None) -> None:
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        shared: list[DsLlamaError | None] = [problem]
        torch.distributed.broadcast_object_list(shared)
        problem = shared[0]
    if problem is not None:
        raise problem


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
