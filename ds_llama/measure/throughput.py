"""Tokens per second and model FLOPs utilisation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Throughput:
    """Of one world: every rank does the same share of the work.

    `flops_per_token` is the model's, forward and backward (see `LlamaConfig.flops_per_token`), with
    nothing added for recomputation: with it the ratio would be HFU. `peak_flops` is one device's
    FLOP/s in the training dtype (see `planner.hardware`), None where it is unknown.
    """

    flops_per_token: float
    world_size: int
    peak_flops: float | None = None

    def row(self, tokens: int, seconds: float) -> dict[str, float | None]:
        """Columns of a metrics row: `tokens` that counted in the loss, over all ranks.

        MFU = tokens/s x FLOPs per token / (world size x peak), PaLM (Chowdhery et al. 2022),
        appendix B. It is None where the peak is unknown, never a guess.
        """
        tokens_per_s = tokens / seconds if seconds > 0 else None
        return {
            "tokens_per_s": tokens_per_s,
            "tokens_per_s_per_device": None if tokens_per_s is None else self._each(tokens_per_s),
            "mfu": self._mfu(tokens_per_s),
        }

    def _each(self, tokens_per_s: float) -> float:
        return tokens_per_s / self.world_size

    def _mfu(self, tokens_per_s: float | None) -> float | None:
        if tokens_per_s is None or not self.peak_flops:
            return None
        return self._each(tokens_per_s) * self.flops_per_token / self.peak_flops
