"""Load a Hugging Face folder into a constructed model, whole or partitioned.

Every rank reads only the elements that it keeps: under `zero.Init` its flat slice of each
parameter (zero.construct.own_part), else all of them, one parameter at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from ds_llama.errors import ModelError
from ds_llama.weights.folder import COMPUTED, ModelFolder, read_config, require_floats
from ds_llama.weights.skeleton import TIED, tied_name
from ds_llama.weights.tensorfile import PART_BYTES

__all__ = ["load_pretrained_", "read_config"]


def load_pretrained_(
    model: nn.Module, folder: str | Path, *, grow_vocabulary: bool = False
) -> None:
    """Set every parameter of `model` from the tensors of `folder`, cast to the parameter's dtype.

    Names are Hugging Face's. Tied parameters need one of their names in the folder. To be called
    before DeepSpeed takes the model over, since its fp32 masters are made from what is there then.
    grow_vocabulary: the embedding and the head of `model` may have more rows than the folder's;
    each of those is the mean of the folder's. Raises ModelError for missing or unexpected names, a
    wrong shape, or a model that is under an engine already; CallError and CheckpointError for what
    is wrong with the folder.
    """
    groups = _names_of(model)
    with ModelFolder(folder) as source:
        chosen = _match(groups, source)
        for parameter, name in chosen:
            _check(parameter, name, source, grow_vocabulary)
        for parameter, name in chosen:
            _fill(parameter, name, source)


def _names_of(model: nn.Module) -> list[tuple[nn.Parameter, list[str]]]:
    """Every parameter once, with all its names: tied ones have several."""
    groups: dict[int, tuple[nn.Parameter, list[str]]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), (parameter, []))[1].append(name)
    return list(groups.values())


def _match(
    groups: list[tuple[nn.Parameter, list[str]]], source: ModelFolder
) -> list[tuple[nn.Parameter, str]]:
    available = set(source.names)
    chosen, missing, known = [], [], set()
    for parameter, names in groups:
        known.update(names)
        found = [name for name in names if name in available]
        if not found:
            missing.append(names[0])
        else:
            chosen.append((parameter, tied_name(source) if len(found) > 1 else found[0]))
    unexpected = [n for n in source.names if n not in known and not COMPUTED.fullmatch(n)]
    if missing or unexpected:
        parts = [f"it lacks {_some(missing)}"] if missing else []
        parts += [f"the model has no {_some(unexpected)}"] if unexpected else []
        raise ModelError(
            f"the weights are of another model: {' and '.join(parts)}",
            where=str(source.path),
            remedy="build the model from the config.json of that folder",
        )
    return chosen


def _check(parameter: nn.Parameter, name: str, source: ModelFolder, grow: bool) -> None:
    shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
    found = source.spec(name).shape
    require_floats(name, source.spec(name).dtype, source.path)
    grown = grow and name in TIED and found[1:] == shape[1:] and 0 < found[0] < shape[0]
    if found != shape and not grown:
        raise ModelError(
            f"{name} has shape {list(found)} in the folder and {list(shape)} in the model",
            where=str(source.path),
            remedy="build the model from the config.json of that folder",
        )
    if hasattr(parameter, "_z3_optimizer") or hasattr(parameter, "_hp_mapping"):
        raise ModelError(
            "the model is under a DeepSpeed engine already, whose fp32 masters would not change",
            where=name,
            remedy="load the weights between construction and register",
        )


def _fill(parameter: nn.Parameter, name: str, source: ModelFolder) -> None:
    if not hasattr(parameter, "ds_id"):
        with torch.no_grad():
            parameter.copy_(_elements(source, name, 0, parameter.numel()).view(parameter.shape))
        return
    # DeepSpeed takes seconds to import, and only a partitioned parameter needs it.
    from ds_llama.zero.construct import own_part

    with own_part(parameter) as (target, start, stop):
        target[stop - start :].zero_()
        target[: stop - start].copy_(_elements(source, name, start, stop))


def _elements(source: ModelFolder, name: str, start: int, stop: int) -> torch.Tensor:
    """Elements start … stop of a tensor that may go on beyond the folder's, with its mean row."""
    numel = source.spec(name).numel
    known = source.read(name, min(start, numel), min(stop, numel))
    if stop <= numel:
        return known
    mean = _mean_row(source, name)
    index = torch.arange(max(start, numel), stop) % mean.numel()
    return torch.cat([known, mean.to(known.dtype)[index]])


def _mean_row(source: ModelFolder, name: str) -> torch.Tensor:
    """Of a matrix, fp64: the same on every rank, and in what is between it and the new rows."""
    rows, columns = source.spec(name).shape
    step = max(1, PART_BYTES // (8 * columns))
    total = torch.zeros(columns, dtype=torch.float64)
    for first in range(0, rows, step):
        last = min(first + step, rows)
        part = source.read(name, first * columns, last * columns)
        total += part.view(-1, columns).double().sum(0)
    return total / rows


def _some(names: Iterable[str], limit: int = 3) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more
