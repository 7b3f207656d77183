"""What asking a model needs, be it a module or a DeepSpeed engine, on one rank or on several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


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


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set on a rank; the same answer on all of them. Collective."""
    shared = torch.tensor(int(flag), device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return bool(shared)
