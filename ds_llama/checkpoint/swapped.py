"""What a rank has on NVMe, in a file of its own: DeepSpeed's hold empty tensors in its place.

    swapped_rank_00.safetensors      "0.master", "0.exp_avg", …, "1.master", …

The numbers are those of the rank's partitions (`zero.pieces.partitions`). A tensor is a whole flat
partition, read into memory and written on, one partition at a time.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from ds_llama.commit.manifest import Entry
from ds_llama.weights.tensorfile import Spec, Writer
from ds_llama.zero import swap, world
from ds_llama.zero.pieces import MASTER, partitions, sizes


def name(rank: int) -> str:
    """A rank's file in a step folder, which only a rank with something on NVMe has."""
    return f"swapped_rank_{rank:02d}.safetensors"


def write(engine: Any, staged: Path) -> list[Entry]:
    """Write this rank's file, synced; its entry, if there is one. Raises OSError as the disk does.

    Every partition that is on NVMe is without content afterwards, whichever swapper it has.
    """
    away = [index for index in range(len(sizes(engine))) if swap.is_away(engine, index)]
    if not away:
        return []
    path, digest = staged / name(world.rank()), hashlib.sha256()
    specs = {key: spec for index in away for key, spec in _specs(engine, index).items()}
    writer = Writer(path, specs, digest.update)
    try:
        for index in away:
            with swap.resident(engine, index):
                for key, tensor in _tensors(engine, index).items():
                    writer.add(key, [tensor])
        writer.close()
    except BaseException:
        writer.abandon()
        raise
    size, rank = path.stat().st_size, world.rank()
    return [{"path": path.name, "size": size, "sha256": digest.hexdigest(), "rank": rank}]


def _tensors(engine: Any, index: int) -> dict[str, torch.Tensor]:
    """A partition's master and the tensors of its state, by name in the file."""
    flat = partitions(engine)[index]
    state = engine.optimizer.optimizer.state.get(flat, {})
    held = {kind: v for kind, v in sorted(state.items()) if torch.is_tensor(v) and v.dim() > 0}
    return {f"{index}.{kind}": tensor for kind, tensor in {MASTER: flat, **held}.items()}


def _specs(engine: Any, index: int) -> dict[str, Spec]:
    """The same of a partition that is on NVMe: all have the type of the buffers that swap them."""
    spec = Spec(engine.optimizer.optimizer_swapper.dtype, (sizes(engine)[index],))
    return dict.fromkeys(_tensors(engine, index), spec)
