"""Word of the buffers that compiled code makes for itself.

torch.compile writes a Python module for every graph. What its kernels write to is made in C++, past
every dispatch mode, by functions that the module has bound to names of its own
(torch/_inductor/codegen/wrapper.py:1430); its products of matrices, attention and collectives are
operations like any other. While somebody watches, those names are of functions that tell, in the
modules that are there and, as they bind what torch's has, in those that come.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

Watcher = Callable[[torch.Tensor], Any]

_GUARDS = torch._C._dynamo.guards
_MAKERS: dict[str, Callable[..., torch.Tensor]] = {
    name: getattr(_GUARDS, f"_{name}")
    for name in (
        "empty_strided_cpu",
        "empty_strided_cpu_pinned",
        "empty_strided_cuda",
        "empty_strided_xpu",
        "empty_strided_mtia",
    )
}
_watchers: list[Watcher] = []


def watch(watcher: Watcher) -> None:
    """Call `watcher(tensor)` with every buffer that compiled code makes, still empty."""
    if not _watchers:
        _bind({name: _telling(maker) for name, maker in _MAKERS.items()})
    _watchers.append(watcher)


def unwatch(watcher: Watcher) -> None:
    _watchers.remove(watcher)
    if not _watchers:
        _bind(_MAKERS)


def _telling(maker: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def make(*args: Any) -> torch.Tensor:
        made = maker(*args)
        for watcher in _watchers:
            watcher(made)
        return made

    return make


def _bind(makers: dict[str, Callable[..., torch.Tensor]]) -> None:
    inductor = sys.modules.get("torch._inductor.codecache")
    modules = [] if inductor is None else inductor.PyCodeCache.modules
    for name, maker in makers.items():
        setattr(_GUARDS, f"_{name}", maker)
        for module in modules:
            setattr(module, name, maker)
