"""From logits to the next token.

Legend: B batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ds_llama.errors import CallError

_SEEDS = 1 << 63
# Logits over less than this may be beyond what fp32 holds.
_COLDEST = 1e-6


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. `temperature` 0 takes the most likely one, always.

    Filters act in transformers' order: the repetition penalty (Keskar et al. 2019: logits of the
    tokens so far, the prompt's too, divided by it where positive and multiplied where negative),
    temperature, then the `top_k` most likely tokens, then the fewest tokens whose probabilities
    reach `top_p` (Holtzman et al. 2020). None, or a penalty of 1, switches one off.
    Raises CallError for a value out of range, or one that would do nothing.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature and not _COLDEST <= self.temperature < float("inf"):
            allowed = f"0 (greedy) or a number from {_COLDEST} on"
            raise _out_of_range("temperature", self.temperature, allowed)
        if self.top_k is not None and self.top_k < 1:
            raise _out_of_range("top-k", self.top_k, "1 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise _out_of_range("top-p", self.top_p, "more than 0 and at most 1")
        if not 0 <= self.seed < _SEEDS:
            raise _out_of_range("seed", self.seed, "a whole number from 0 to 2^63 - 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise _out_of_range(
                "repetition-penalty", self.repetition_penalty, "a positive number (1 is none)"
            )
        for name, value in (("top-k", self.top_k), ("top-p", self.top_p)):
            if value is not None and self.temperature == 0:
                raise CallError(
                    f"{name} does nothing at temperature 0, which takes the most likely token",
                    where=f"--{name}",
                    remedy=f"give a --temperature above 0, or leave --{name} out",
                )

    def seeds(self, count: int) -> list[int]:
        """One a sequence: what is drawn for it does not depend on how many others there are."""
        generator = torch.Generator().manual_seed(self.seed)
        seeds: list[int] = torch.randint(_SEEDS - 1, (count,), generator=generator).tolist()
        return seeds

    def choose(
        self,
        logits_BV: Tensor,
        generators: Sequence[torch.Generator],
        seen_BV: Tensor | None = None,
    ) -> Tensor:
        """The next token of every sequence, int64 (B,); -1 where the logits are not finite.

        generators: one a sequence, on the CPU, whatever the model is on: the same draws everywhere.
        seen_BV: bool, the tokens that a sequence has so far; needed for a repetition penalty.
        """
        scores_BV = self.filter(logits_BV.float(), seen_BV)
        if self.temperature == 0:
            chosen_B = scores_BV.argmax(dim=-1)
        else:
            upto_BV = scores_BV.softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)
            draws = [torch.rand(1, generator=g, dtype=torch.float64) for g in generators]
            # in (0, sum]: a token without probability adds nothing, so is never first to reach it
            share_B1 = (1 - torch.stack(draws).to(upto_BV.device)) * upto_BV[:, -1:]
            chosen_B = torch.searchsorted(upto_BV, share_B1)[:, 0]
        return chosen_B.where(scores_BV.amax(dim=-1).isfinite(), -1)

    def filter(self, logits_BV: Tensor, seen_BV: Tensor | None = None) -> Tensor:
        """Penalised logits over the temperature, minus infinity where a token is not to be drawn.

        At temperature 0 they are penalised only.
        """
        if seen_BV is not None and self.repetition_penalty != 1:
            penalty = self.repetition_penalty
            lowered_BV = torch.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
            logits_BV = torch.where(seen_BV, lowered_BV, logits_BV)
        if self.temperature == 0:
            return logits_BV
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
