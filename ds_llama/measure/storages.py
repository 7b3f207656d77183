"""Storages of tensors, and word of those that are resized in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

Watcher = Callable[[torch.UntypedStorage], None]

_watchers: list[Watcher] = []


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of an operation's arguments or results: alone, or in lists, tuples and dicts.

    What operations are given nests little; torch's pytree costs ten times as much.
    """
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def strided_parts(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors that hold the memory of `tensor`: itself, or the parts of a sparse one."""
    if tensor.layout is torch.strided:
        return (tensor,)
    if tensor.layout is torch.sparse_coo:
        return (tensor._indices(), tensor._values())
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
    return ()


def is_wrapper(kind: type) -> bool:
    """Whether tensors of this class hold other tensors and dispatch to them (DTensor)."""
    return (
        issubclass(kind, torch.Tensor)
        and not issubclass(kind, FakeTensor)
        and kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    )


def watch(watcher: Watcher) -> None:
    """Call `watcher(storage)` after every `untyped_storage().resize_` from Python."""
    if not _watchers:
        torch.UntypedStorage.resize_ = _resize_and_tell  # type: ignore[method-assign]
    _watchers.append(watcher)


def unwatch(watcher: Watcher) -> None:
    _watchers.remove(watcher)
    if not _watchers:
        # the method is inherited from the C base class: deleting ours brings it back
        del torch.UntypedStorage.resize_


def _resize_and_tell(storage: torch.UntypedStorage, size: int) -> Any:
    out = torch._C.StorageBase.resize_(storage, size)
    for watcher in _watchers:
        watcher(storage)
    return out


def load_dynamo() -> None:
    """Before a dispatch mode is entered: torch's dispatch to one imports it at the first operation.

    Inside `zero.Init` that import fails: `torch.Tensor.__new__` has another signature there
    (partition_parameters.py:269, torch/_dynamo/polyfills/tensor.py:39).
    """
    import torch._dynamo  # noqa: F401
