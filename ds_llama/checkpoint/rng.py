"""Random number generators of a rank, as JSON."""

from __future__ import annotations

import base64
import random
from typing import Any, cast

import numpy as np
import torch
from deepspeed.accelerator import get_accelerator


def capture() -> dict[str, Any]:
    """State of Python's, NumPy's, torch's CPU and the accelerator's generator."""
    version, words, gauss = random.getstate()
    name, keys, *counters = cast("tuple[Any, ...]", np.random.get_state(legacy=True))
    state: dict[str, Any] = {
        "python": [version, _encode(np.array(words, dtype="<u4").tobytes()), gauss],
        "numpy": [name, _encode(keys.astype("<u4").tobytes()), *counters],
        "torch": _encode(torch.get_rng_state().numpy().tobytes()),
    }
    if _has_own_generator():
        state["device"] = _encode(get_accelerator().get_rng_state().cpu().numpy().tobytes())
    return state


def restore(state: dict[str, Any]) -> None:
    """Set the generators that `capture` read; one of a device that is not here is left alone."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(np.frombuffer(_decode(words), "<u4").tolist()), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    array = np.frombuffer(_decode(keys), "<u4").astype(np.uint32)
    np.random.set_state((name, array, position, has_gauss, cached))
    torch.set_rng_state(_tensor(state["torch"]))
    if "device" in state and _has_own_generator():
        get_accelerator().set_rng_state(_tensor(state["device"]))


def _has_own_generator() -> bool:
    return bool(get_accelerator().device_name() != "cpu")


def _tensor(text: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(_decode(text), np.uint8).copy())


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text)
