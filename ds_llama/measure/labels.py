"""What a storage is for, by what made it, by what uses it, and by who owns it.

    made   in a forward phase, or by autograd in a backward one: an activation, or logits where its
           last dimension is the vocabulary's; elsewhere from gradients: gradients; or other
    used   as the gradient that autograd accumulates, as a parameter of a module, by a collective,
           or by an optimizer's step
    owned  by an engine, which says so at the end of every phase (`zero.holdings`)

The stronger word stands: owned before used before made. A label belongs to the storage, so a
buffer that is filled, sent and dropped inside a phase has the label of its use from the beginning.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn

from ds_llama.measure.phases import CATEGORIES

MADE, USED, OWNED = range(3)
PARAMETERS, GRADIENTS, MASTER, OPTIMIZER, BUCKETS, ACTIVATIONS, LOGITS, OTHER = range(8)
INDEX = {name: index for index, name in enumerate(CATEGORIES)}

_node = torch._C._current_autograd_node
_ACCUMULATE = "torch::autograd::AccumulateGrad"


class Live(weakref.ref):  # type: ignore[type-arg]
    """A storage that is counted: where it is, how large it was when last seen, what it is for.

    serial: the how-manieth storage of the account. stack: what Python did when it was first seen
    (`torch.utils._traceback.CapturedTraceback`), where that is kept.
    """

    __slots__ = ("category", "device", "key", "serial", "size", "stack", "strength")
    key: int
    serial: int
    size: int
    device: str
    category: int
    strength: int
    stack: Any

    def label(self, category: int, strength: int) -> None:
        """Take a label that is as strong as the present one or stronger."""
        if strength >= self.strength:
            self.category, self.strength = category, strength


def made(tensor: torch.Tensor, phase: str, vocabulary: int | None, source: int) -> int:
    """The category of what an operation has just made; `source`: that of what it was made from."""
    node = _node()
    if node is not None and node.name() == _ACCUMULATE:
        return GRADIENTS
    if phase != "forward" and (phase != "backward" or node is None):
        return GRADIENTS if source == GRADIENTS else OTHER
    shape = tensor.shape
    return LOGITS if len(shape) > 1 and shape[-1] == vocabulary else ACTIVATIONS


def used(live: Live, tensor: torch.Tensor) -> None:
    """Label what an operation is given, where nobody has said yet what it is for."""
    if type(tensor) is nn.Parameter or getattr(tensor, "_is_param", False):
        live.label(PARAMETERS, USED)
        return
    node = _node()
    if node is not None and node.name() == _ACCUMULATE:
        live.label(GRADIENTS, USED)


def collective(name: str) -> int | None:
    """The category of the tensors of a c10d operation.

    Weights are gathered, at stages 1 to 3; what else is sent are buckets of gradients.
    """
    return PARAMETERS if "allgather" in name else BUCKETS
