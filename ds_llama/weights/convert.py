"""A Hugging Face folder from another one: checked, cast, divided anew, a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ds_llama.errors import ModelError
from ds_llama.weights import skeleton
from ds_llama.weights.folder import COMPUTED, ModelFolder, read_config
from ds_llama.weights.tensorfile import Spec
from ds_llama.weights.write import MAX_SHARD_BYTES, write_folder


def convert_folder(
    source: str | Path,
    out: str | Path,
    *,
    dtype: torch.dtype | None = None,
    tokenizer: Any = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write the model of the folder `source` to the folder `out`, holding one tensor at a time.

    dtype: the tensors' own by default. tokenizer: taken from `source` by default. Raises ModelError
    when the tensors are not those of `source`'s config.json, CallError and CheckpointError for what
    is wrong with either folder.
    """
    source = Path(source)
    config = read_config(source)
    with ModelFolder(source) as folder:
        if Path(out).resolve() == source.resolve():
            raise ModelError(
                "the weights cannot be written over themselves",
                where=str(out),
                remedy="give another output folder",
            )
        shapes = {n: folder.spec(n).shape for n in folder.names if not COMPUTED.fullmatch(n)}
        expected = skeleton.specs_of(config, torch.float32)
        skeleton.require_same(expected, shapes, source)
        specs = {n: Spec(dtype or folder.spec(n).dtype, expected[n].shape) for n in expected}
        return write_folder(
            out,
            config,
            specs,
            _tensors(folder, specs),
            tokenizer=tokenizer or source,
            max_shard_bytes=max_shard_bytes,
        )


def _tensors(folder: ModelFolder, specs: Mapping[str, Spec]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, spec in specs.items():
        yield name, folder.read(name).view(spec.shape)
