"""From logits to the next token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ds_llama.errors import CallError


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. `temperature` 0 takes the most likely one, always.

    Filters act in transformers' order: temperature, then the `top_k` most likely tokens, then the
    fewest tokens whose probabilities reach `top_p` (Holtzman et al. 2020). None switches one off.
    Raises CallError for a value out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise _out_of_range("temperature", self.temperature, "0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise _out_of_range("top-k", self.top_k, "1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise _out_of_range("top-p", self.top_p, "more than 0 and at most 1")

    def generator(self) -> torch.Generator:
        """On the CPU, whatever the model is on: the same draws for a seed everywhere."""
        return torch.Generator().manual_seed(self.seed)

    def choose(self, logits_BV: Tensor, generator: torch.Generator) -> Tensor:
        """The next token of every sequence, int64 (B,)."""
        if self.temperature == 0:
            return logits_BV.argmax(dim=-1)
        filtered_BV = self.filter(logits_BV.float())
        probabilities_BV = filtered_BV.softmax(dim=-1).cpu()
        drawn_B1 = torch.multinomial(probabilities_BV, 1, generator=generator)
        return drawn_B1[:, 0].to(logits_BV.device)

    def filter(self, logits_BV: Tensor) -> Tensor:
        """Logits over the temperature, minus infinity where a token is not to be drawn."""
        logits_BV = logits_BV / self.temperature
        if self.top_k is not None and self.top_k < logits_BV.shape[-1]:
            kth_B1 = logits_BV.topk(self.top_k, dim=-1).values[:, -1:]
            logits_BV = logits_BV.masked_fill(logits_BV < kth_B1, -torch.inf)
        if self.top_p is not None and self.top_p < 1:
            sorted_BV, index_BV = logits_BV.sort(dim=-1)
            # ascending: what stays has more than 1 - p below or at it; the most likely stays
            cut_BV = sorted_BV.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.top_p
            cut_BV[:, -1] = False
            logits_BV = logits_BV.masked_fill(cut_BV.scatter(1, index_BV, cut_BV), -torch.inf)
        return logits_BV


def _out_of_range(name: str, value: float, allowed: str) -> CallError:
    return CallError(
        f"{name} is {value}", where=f"--{name}", remedy=f"give {allowed}, or leave it out"
    )
