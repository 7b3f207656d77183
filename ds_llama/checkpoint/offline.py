"""Weights of a committed step folder, read without a process group and without its world size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ds_llama.checkpoint import state as states
from ds_llama.checkpoint.reader import Reader
from ds_llama.commit.verify import require_whole
from ds_llama.config.model import LlamaConfig
from ds_llama.errors import CheckpointError
from ds_llama.weights import skeleton
from ds_llama.weights.tensorfile import PART_BYTES
from ds_llama.weights.write import MAX_SHARD_BYTES, write_folder
from ds_llama.zero.ema import KEY
from ds_llama.zero.pieces import MASTER


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
    tokenizer: by default the run's own, or the one of the pretrained folder that it began with, if
    it is still there. Holds 4 MiB of a tensor at a time. Nothing is unpickled before every file's
    size and hash are the manifest's.
    Raises CheckpointError for a damaged checkpoint or one without an average, ModelError when it is
    no LLaMA.
    """
    folder = Path(checkpoint)
    try:
        return _export(folder, out, dtype, ema, tokenizer, max_shard_bytes)
    except Exception as error:  # a reader fails in whatever it no longer finds
        if folder.is_dir():
            raise
        raise CheckpointError(
            "the checkpoint is not there any more: a run removes old ones",
            where=str(folder),
            remedy="export again, from a newer one, or keep more ('checkpoint': {'keep_last': N})",
        ) from error


def _export(
    folder: Path,
    out: str | Path,
    dtype: torch.dtype | None,
    ema: bool,
    tokenizer: Any,
    max_shard_bytes: int,
) -> Path:
    require_whole(folder)
    state = states.read(folder)
    config = LlamaConfig.from_hf(state["model"])
    masters = weights_of(folder, state, ema=ema)
    specs = skeleton.specs_of(config, dtype or getattr(torch, state["dtype"]))
    shapes = {name: tuple(tensor.shape) for name, tensor in masters.items()}
    skeleton.require_same(specs, shapes, folder)
    run = state.get("run", {})
    begun_with = _located(run.get("model", {}).get("pretrained"), run, folder)
    own = _located(run.get("data", {}).get("tokenizer"), run, folder)
    return write_folder(
        out,
        config,
        specs,
        lambda name: masters[name].parts(),
        tokenizer=tokenizer or own or begun_with,
        generation=begun_with,
        max_shard_bytes=max_shard_bytes,
    )


@dataclass(frozen=True)
class Lazy:
    """A tensor of a step folder that is read only when it is asked for."""

    reader: Reader
    name: str
    kind: str

    @property
    def shape(self) -> tuple[int, ...]:
        """As the module has it."""
        return self.reader.shapes[self.name]

    def contiguous(self) -> torch.Tensor:
        """The tensor, on the CPU, in the dtype in which it is saved."""
        return self.reader.whole(self.name, self.kind)

    def parts(self) -> Iterator[torch.Tensor]:
        """The same in order, flat, some MiB at a time."""
        numel, dtype = math.prod(self.shape), self.reader.dtype(self.name, self.kind)
        step = PART_BYTES // dtype.itemsize
        for start in range(0, numel, step):
            part = torch.empty(min(step, numel - start), dtype=dtype)
            self.reader.read_into(self.name, self.kind, start, part)
            yield part


def weights_of(folder: Path, state: Mapping[str, Any], *, ema: bool = False) -> dict[str, Lazy]:
    """Master weights by name, or their averages; of any stage and world size. Verify the folder
    first.

    state: the folder's state.json. Raises CheckpointError when it has no averages.
    """
    reader = Reader(folder, state)
    kinds = {name: reader.kinds(name) for name in reader.shapes}
    if ema and not any(KEY in found for found in kinds.values()):
        raise CheckpointError(
            "the checkpoint holds no averaged weights",
            where=str(folder),
            remedy='leave --ema out, or train with "ema": {"decay": 0.999} first',
        )
    # Frozen weights have no average.
    return {n: Lazy(reader, n, KEY if ema and KEY in kinds[n] else MASTER) for n in reader.shapes}


def _located(path: str | None, run: Mapping[str, Any], folder: Path) -> Path | None:
    """What a run calls `path`, if it is there: from here, or from where the run was started.

    That is told by the run's own folder, which `output` names from there.
    """
    output, bases = Path(run.get("output", "")), [Path()]
    at = folder.resolve().parent.parent
    if output.parts and not output.is_absolute() and at.parts[-len(output.parts) :] == output.parts:
        bases.append(at.parents[len(output.parts) - 1])
    found = (base / path for base in bases if path)
    return next((place for place in found if place.exists()), None)
