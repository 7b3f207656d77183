"""Linear and embedding layers that leave their memory as it comes.

torch's own draw a Kaiming-uniform or normal weight when they are made. Here that value would be
overwritten at once, cost a pass over every weight, and advance the global generator.
"""

from __future__ import annotations

from torch import nn


class Linear(nn.Linear):
    """`nn.Linear` whose values are decided by `model.init`."""

    def reset_parameters(self) -> None:
        pass


class Embedding(nn.Embedding):
    """`nn.Embedding` whose values are decided by `model.init`."""

    def reset_parameters(self) -> None:
        pass
