"""A language model that is no LLaMA, and what ds_llama must know about it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class Output:
    loss: torch.Tensor | None
    logits: torch.Tensor


class Mixer(nn.Module):
    """A causal convolution over the last four tokens, and a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Conv1d(width, width, 4)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(self.norm(x_BTD).transpose(1, 2), (3, 0))
        return x_BTD + nn.functional.silu(self.mix(padded)).transpose(1, 2)


class OtherLM(nn.Module):
    def __init__(self, vocab_size: int = 64, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(Mixer(width) for _ in range(layers))
        self.head = nn.Linear(width, vocab_size)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> Output:
        x_BTD = self.embed(input_ids)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits = self.head(x_BTD)
        if labels is None:
            return Output(None, logits)
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return Output(loss, logits)


def register() -> None:
    """The entry point: `ds_llama` calls this when it first meets a model that it does not know."""
    from ds_llama import register_traits
    from ds_llama.model.traits import Traits

    rows = {"no_decay": ("*norm*", "*.bias"), "decay": ("*.weight",)}
    register_traits(OtherLM, Traits(Mixer, **rows))
