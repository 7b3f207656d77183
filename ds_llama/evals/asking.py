"""What asking a model needs, be it a module or a DeepSpeed engine, on one rank or on several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from ds_llama.errors import RunError

T = TypeVar("T")


def config_of(model: Any) -> Any:
    """The network's; an engine's own `config` is the DeepSpeed JSON."""
    return getattr(model, "module", model).config


def device_of(model: Any) -> torch.device:
    """An engine says where it computes: its parameters may be offloaded."""
    device = getattr(model, "device", None)
    if isinstance(device, torch.device):
        return device
    return torch.device(device) if device else next(model.parameters()).device


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Eval mode, and afterwards the mode from before, whatever happens."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def is_partitioned(model: nn.Module) -> bool:
    """Whether ZeRO-3 holds it in parts, so that every forward pass needs every rank."""
    return any(hasattr(parameter, "ds_tensor") for parameter in model.parameters())


def idle_pass(model: Any, device: torch.device) -> None:
    """A forward pass that nobody reads, since those of other ranks need what this one holds."""
    model(torch.zeros(1, 1, dtype=torch.int64, device=device))


def rank_and_world() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set on a rank; the same answer on all of them. Collective."""
    shared = torch.tensor(int(flag), device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return bool(shared)


def from_all(find: Callable[[], dict[int, T]]) -> dict[int, T]:
    """What `find` comes to on each rank, together, on all of them. Collective.

    An error on one rank is raised there, and as a RunError on the others, which would wait for it.
    """
    world = rank_and_world()[1]
    if world == 1:
        return find()
    mine: dict[int, T] | None = None
    failure: Exception | None = None
    try:
        mine = find()
    except Exception as error:
        failure = error
    parts: list[dict[int, T] | None] = [None] * world
    dist.all_gather_object(parts, mine)
    if None in parts:
        raise failure or RunError(
            "another rank could not answer its rows",
            where=f"rank {parts.index(None)}",
            remedy="see that rank's error",
        )
    return {key: value for part in parts if part for key, value in part.items()}
