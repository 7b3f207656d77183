"""Averaged weights (`ema`) of a committed step folder, read as its masters are: without ranks.

DeepSpeed's own reader (utils/zero_to_fp32.py) puts flat partitions together, whatever they hold:
here it is given those of the average, which lie beside Adam's moments in the same files.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ds_llama.errors import CheckpointError
from ds_llama.zero.ema import KEY


def read(folder: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """fp32 averages by name; values as `offline.read_masters` has them. Verify the folder first.

    state: the folder's state.json. Raises CheckpointError when the checkpoint has none.
    """
    try:
        return _whole(folder, state) if state["stage"] == 0 else _from_shards(folder, state)
    except KeyError as error:
        if error.args != (KEY,):
            raise
        raise CheckpointError(
            "the checkpoint holds no averaged weights",
            where=str(folder),
            remedy='leave --ema out, or train with "ema": {"decay": 0.999} first',
        ) from error


def _whole(folder: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    file = folder / "mp_rank_00_model_states.pt"
    found = torch.load(file, map_location="cpu", mmap=True, weights_only=False)
    averages = [held[KEY] for _, held in sorted(found["optimizer"]["state"].items())]
    # Tied and frozen weights are in the module only.
    return {**found["module"], **dict(zip(state["parameter_order"], averages, strict=True))}


def _from_shards(folder: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    from deepspeed.utils import zero_to_fp32 as reader

    # It reports its progress on stdout, where --json wants one document and nothing else.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        shards = [
            torch.load(file, map_location="cpu", mmap=True, weights_only=False)
            for file in reader.get_optim_files(str(folder))
        ]
        models = reader.parse_model_states(reader.get_model_state_files(str(folder)))
        partitions = [_partitions(shard["optimizer_state_dict"]) for shard in shards]
        if state["stage"] == 3:
            merged = reader._get_fp32_state_dict_from_zero3_checkpoint(
                len(shards), partitions, models, False
            )
        else:
            paddings = shards[0]["optimizer_state_dict"].get("param_alignment_paddings")
            merged = reader._get_fp32_state_dict_from_zero2_checkpoint(
                len(shards), partitions, models, False, paddings
            )
    return dict(merged)


def _partitions(shard: Mapping[str, Any]) -> list[torch.Tensor]:
    """The averages of one rank in the order of its flat masters, as long as those are."""
    if "fp32_flat_groups" in shard:
        masters, held = shard["fp32_flat_groups"], shard["optimizer_state_dict"]["state"]
    else:  # masters are saved without the padding at their end, states may have it
        masters, held = shard["single_partition_of_fp32_groups"], shard["base_optimizer_state"]
        held = held["state"] if isinstance(held, dict) else held
    return [held[i][KEY].view(-1)[: flat.numel()] for i, flat in enumerate(masters)]
