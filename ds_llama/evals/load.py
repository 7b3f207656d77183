"""From whatever a user calls a checkpoint to a model that can be asked."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ds_llama.commit import listing, manifest
from ds_llama.config.files import read_object
from ds_llama.config.model import LlamaConfig
from ds_llama.errors import CheckpointError
from ds_llama.model.llama import Llama
from ds_llama.weights import skeleton
from ds_llama.weights.folder import TOKENIZER_FILES, ModelFolder, read_config
from ds_llama.weights.load import load_pretrained_

_RUN_FILE = "run.json"


class Loaded(NamedTuple):
    """A model in eval mode on its device, its config, and where its tokenizer is, if known.

    eos: ids that end a text, by the config and by an export's generation_config.json.
    """

    model: Llama
    config: LlamaConfig
    tokenizer: Path | None
    eos: frozenset[int] = frozenset()


class Step(NamedTuple):
    """A training checkpoint, read: `tensors` by Hugging Face's names.

    A tensor has a `shape`, and gives itself by `contiguous()`. `dtype`: what the run trained in.
    """

    config: LlamaConfig
    tensors: Mapping[str, Any]
    dtype: torch.dtype
    tokenizer: Path | None


def load_for_inference(
    path: str | Path,
    *,
    read_step: Callable[[Path], Step] | None = None,
    device: torch.device | str | None = None,
) -> Loaded:
    """The newest complete weights at `path`, in eval mode, in the dtype of the training.

    path: a step folder, a checkpoints folder, a run folder, or an exported folder, as `locate`
    reads it. read_step: reads a step folder; this room knows exports only. device: CUDA when there
    is one. Raises CallError, CheckpointError or ModelError for what is missing, not whole, or of
    another network.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind, folder = locate(path)
    if kind == "export":
        return _load_export(folder, torch.device(device))
    if read_step is None:
        raise CheckpointError(
            "this is a training checkpoint, and an exported folder is needed here",
            where=str(folder),
            remedy=f"export it first: ds-llama export {folder} OUT",
        )
    return _load_step(read_step(folder), folder, torch.device(device))


def locate(path: str | Path) -> tuple[str, Path]:
    """Which folder `path` means: ("export" or "step", folder).

    path: a step folder, a checkpoints folder, a run folder, or an exported folder; the newest
    complete one is taken. A run folder means its export when that is as new as its newest
    checkpoint. Raises CallError or CheckpointError when there is none.
    """
    found = listing.find(path)
    export = Path(path) / listing.EXPORT
    in_this_run = found.kind == "step" and found.path.parent == Path(path) / listing.CHECKPOINTS
    if in_this_run and _is_newer(export, found.path):
        return "export", export
    return found.kind, found.path


def find_run(path: str | Path) -> dict[str, Any] | None:
    """The run.json that a checkpoint or an export belongs to, None when there is none above it."""
    start = Path(path).resolve()
    for folder in (start, *start.parents[:2]):
        try:
            found = json.loads((folder / _RUN_FILE).read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and "model" in found:
            return found
    return None


def _is_newer(export: Path, step: Path) -> bool:
    try:
        written = (export / "config.json").stat().st_mtime_ns
        return written >= (step / manifest.NAME).stat().st_mtime_ns
    except OSError:
        return False


def _load_export(folder: Path, device: torch.device) -> Loaded:
    config = read_config(folder)
    with ModelFolder(folder) as source:
        dtype = source.spec(source.names[0]).dtype
    model = _empty(config, dtype, device)
    load_pretrained_(model, folder)
    # the first two are tokenizers, the others only go with one
    has_tokenizer = any((folder / name).is_file() for name in TOKENIZER_FILES[:2])
    generation = folder / "generation_config.json"
    more = read_object(generation).get("eos_token_id") if generation.is_file() else None
    eos = _ids(config.eos_token_id, folder / "config.json") | _ids(more, generation)
    return Loaded(model.eval(), config, folder if has_tokenizer else None, eos)


@torch.no_grad()
def _load_step(step: Step, folder: Path, device: torch.device) -> Loaded:
    shapes = {name: tuple(tensor.shape) for name, tensor in step.tensors.items()}
    skeleton.require_same(skeleton.specs_of(step.config, step.dtype), shapes, folder)
    model = _empty(step.config, step.dtype, device)
    for name, parameter in model.named_parameters():
        parameter.copy_(step.tensors[name].contiguous())
    return Loaded(model.eval(), step.config, step.tokenizer, _ids(step.config.eos_token_id, folder))


def _ids(value: Any, where: Path) -> frozenset[int]:
    """Of an `eos_token_id`: one id, a list of them, or null."""
    ids = value if isinstance(value, list | tuple) else [] if value is None else [value]
    if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise CheckpointError(
            f"eos_token_id is {value!r}",
            where=f"{where}:eos_token_id",
            remedy="write the id of a token, a list of such, or null",
        )
    return frozenset(ids)


def _empty(config: LlamaConfig, dtype: torch.dtype, device: torch.device) -> Llama:
    """A model with memory and no values: nothing is drawn only to be written over."""
    with torch.device("meta"):
        model = Llama(config, init=False)
    return model.to(dtype).to_empty(device=device)
