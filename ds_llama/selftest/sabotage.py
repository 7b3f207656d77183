"""Ways to break the engine's side of a cell on purpose: each must be seen by every cell.

Each is done to the last rank only. A comparison that does not notice is worth nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Window = list[dict[str, Any]]


@dataclass(frozen=True)
class Sabotage:
    """`engine` is changed once, before the first step; `window` before every step."""

    what: str
    engine: Callable[[Any], None] = lambda engine: None
    window: Callable[[Window], Window] = lambda window: window


def _scale_gradient(engine: Any) -> None:
    """By the chain rule: what `backward` starts from is 1 % too large."""
    backward = engine.backward
    engine.backward = lambda loss, **words: backward(loss * 1.01, **words)


def _round_rotary_table(engine: Any) -> None:
    """Tables are made at the first forward pass: let them be made rounded."""
    rotary = engine.module.model.rotary
    compute = rotary.compute
    rotary.compute = lambda *words: tuple(t.bfloat16().float() for t in compute(*words))
    rotary._key, rotary._tables = (), None


def _scale_and_round(engine: Any) -> None:
    _scale_gradient(engine)
    _round_rotary_table(engine)


def _repeat_data(window: Window) -> Window:
    """The last row of the window is its first once more."""
    last = {name: tensor.clone() for name, tensor in window[-1].items()}
    for name, tensor in last.items():
        tensor[-1] = window[0][name][0]
    return [*window[:-1], last]


SABOTAGES = {
    "gradient": Sabotage("the last rank's gradient is 1 % too large", engine=_scale_gradient),
    "rotary": Sabotage(
        "the last rank's rotary table is rounded to bf16", engine=_round_rotary_table
    ),
    "data": Sabotage("the last rank reads one row twice a step", window=_repeat_data),
    "all": Sabotage(
        "the last rank's gradient is too large, its rotary table rounded, a row of its data twice",
        engine=_scale_and_round,
        window=_repeat_data,
    ),
}
