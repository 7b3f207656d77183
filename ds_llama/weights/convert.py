"""A Hugging Face folder from another one, or from Meta's: checked, cast, divided anew, streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ds_llama.errors import CallError, ModelError
from ds_llama.weights import params, skeleton
from ds_llama.weights.folder import COMPUTED, ModelFolder, require_floats
from ds_llama.weights.meta import MetaFolder
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
    """Write the model of the folder `source` to the folder `out`.

    source: Hugging Face's safetensors or `.bin`, or Meta's `consolidated.*.pth` with params.json.
    Holds 4 MiB of a tensor at a time, of Meta's one tensor. dtype: the tensors' own by default.
    tokenizer: taken from `source` by default. Raises ModelError when the tensors are not those of
    `source`'s config, or `dtype` cannot hold them, CallError and CheckpointError for what is wrong
    with either folder, DataError for a tokenizer.model that is none.
    """
    source = Path(source)
    if Path(out).resolve() == source.resolve():
        raise ModelError(
            "the weights cannot be written over themselves",
            where=str(out),
            remedy="give another output folder",
        )
    with _open(source) as folder:
        config = folder.config
        stored = {name: name for name in folder.names if not COMPUTED.fullmatch(name)}
        if config.tie_word_embeddings:
            stored[skeleton.TIED[1]] = skeleton.tied_name(folder)
        shapes = {name: folder.spec(held).shape for name, held in stored.items()}
        expected = skeleton.specs_of(config, torch.float32)
        skeleton.require_same(expected, shapes, source)
        specs = {}
        for name, spec in expected.items():
            found = folder.spec(stored[name]).dtype
            require_floats(name, found, source)
            specs[name] = Spec(dtype or found, spec.shape)
        return write_folder(
            out,
            config,
            specs,
            lambda name: folder.parts(stored[name]),
            tokenizer=tokenizer or folder.tokenizer,
            generation=source,
            max_shard_bytes=max_shard_bytes,
        )


def _open(source: Path) -> ModelFolder | MetaFolder:
    if (source / "config.json").is_file():
        return ModelFolder(source, pickles=True)
    if (source / params.NAME).is_file():
        return MetaFolder(source)
    raise CallError(
        f"there is no model here: neither config.json nor {params.NAME}"
        if source.is_dir()
        else "there is no such folder of weights",
        where=str(source),
        remedy="give a folder of Hugging Face's, or one of Meta's with consolidated.00.pth",
    )
