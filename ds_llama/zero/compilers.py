"""torch's compiler stays out of a process that compiles nothing.

Its import, Inductor's included, takes 2.4 s of CPU and 115 MiB of each rank (torch 2.13). These
import it at the start of every training, and none needs it:

- Functions that are never to be traced (an optimizer's `zero_grad`, DeepSpeed's hooks at stage 3)
  ask it to leave them alone, at their first call (torch/_compile.py:44) or when they are made
  (deepspeed/runtime/zero/parameter_offload.py:358).
- The step of an optimizer of torch's breaks a graph, were there one (torch/optim/optimizer.py:61).
- DeepSpeed imports Muon to ask whether an optimizer is one (deepspeed/runtime/zero/utils.py:66),
  and Muon has its functions compiled when it is imported.

All are called as they are until something does import the compiler; from then on they are torch's
own again. Muon's are compiled when they are called.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.abc import MetaPathFinder
from typing import Any
from weakref import WeakSet

import torch
import torch.utils.checkpoint
from deepspeed.runtime import compiler
from deepspeed.runtime.activation_checkpointing import checkpointing
from deepspeed.runtime.zero import partitioned_param_coordinator as coordinator

_COMPILER = "torch._dynamo"
_HAVE_UNTRACED = (
    *(torch.optim.Optimizer, torch.utils.checkpoint),
    *(checkpointing, coordinator, coordinator.PartitionedParameterCoordinator),
)
_WRAPPER = torch._disable_dynamo(lambda: None).__code__
_CALLED = "__dynamo_disable"  # what such a wrapper calls, once it has asked
_untraced: WeakSet[Any] = WeakSet()


def spare() -> None:
    """To be called before an optimizer is made; nothing where the compiler is there already."""
    if _COMPILER in sys.modules or any(isinstance(each, _Watch) for each in sys.meta_path):
        return
    for owner in _HAVE_UNTRACED:
        for value in vars(owner).values():
            if getattr(value, "__code__", None) is _WRAPPER:
                _call_as_it_is(value.__wrapped__)
    for optimizer in (torch.optim.Adam, torch.optim.SGD):  # AdamW's step is Adam's
        optimizer.step = _step(optimizer.step)
    sys.meta_path.insert(0, _Watch())


@contextmanager
def put_off() -> Iterator[None]:
    """For `deepspeed.initialize`: what it makes and imports in here does as the rest does."""
    spare()
    before = compiler.compile, torch.compiler.disable
    if _COMPILER not in sys.modules:
        torch.compiler.disable = _untraced_function
        compiler.compile = lambda **settings: partial(_at_first_call, before[0], settings)
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
        compiler.compile = before[0]
    try:
        yield
    finally:
        torch.compiler.disable = before[1]


def _untraced_function(function: Any) -> Any:
    return torch._disable_dynamo(_call_as_it_is(function))


def _call_as_it_is(plain: Any) -> Any:
    if _COMPILER not in sys.modules:
        setattr(plain, _CALLED, plain)
        _untraced.add(plain)
    return plain


def _at_first_call(compile: Any, settings: dict[str, Any], function: Callable[..., Any]) -> Any:
    compiled = functools.cache(lambda: compile(**settings)(function))
    return functools.wraps(function)(lambda *args, **kwargs: compiled()(*args, **kwargs))


def _step(breaks_a_graph: Any) -> Any:
    """A step under `no_grad`, or with gradients where it is to be differentiated."""
    step = breaks_a_graph.__wrapped__

    @functools.wraps(step)
    def call(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        if _COMPILER in sys.modules:
            return breaks_a_graph(self, *args, **kwargs)
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *args, **kwargs)

    return call


class _Watch(MetaPathFinder):
    """Hears of the compiler's import before it begins."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        while name == _COMPILER and _untraced:
            delattr(_untraced.pop(), _CALLED)
