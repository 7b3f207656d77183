"""Which host tensors of the simulation are page-locked, and how many bytes that is."""

from __future__ import annotations

import weakref

import torch


class _Pinned(weakref.ref):  # type: ignore[type-arg]
    __slots__ = ("key", "size")
    key: int
    size: int


_live: dict[int, _Pinned] = {}
_now = _peak = 0


def pin(tensor: torch.Tensor) -> torch.Tensor:
    """Lock the storage of `tensor` as long as it lives."""
    global _now, _peak
    storage = tensor.untyped_storage()
    if storage._cdata not in _live:
        locked = _Pinned(storage, _release)
        locked.key, locked.size = storage._cdata, storage.nbytes()
        _live[locked.key] = locked
        _now += locked.size
        _peak = max(_peak, _now)
    return tensor


def is_pinned(tensor: torch.Tensor) -> bool:
    """Whether the tensor is (a view of) one that was pinned."""
    return tensor.untyped_storage()._cdata in _live


def peak_bytes() -> int:
    """The most that was locked at once."""
    return _peak


def _release(locked: _Pinned) -> None:
    global _now
    if _live.get(locked.key) is locked:
        del _live[locked.key]
        _now -= locked.size
