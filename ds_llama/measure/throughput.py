"""Model FLOPs utilisation."""

from __future__ import annotations


def mfu(
    tokens_per_s_per_device: float, flops_per_token: float, peak_flops: float | None
) -> float | None:
    """The share of one device's peak that the model's own arithmetic takes, 0 to 1.

    Tokens/s x FLOPs per token / peak FLOP/s: PaLM (Chowdhery et al. 2022), appendix B.
    `flops_per_token` is the model's, forward and backward (`LlamaConfig.flops_per_token`); with
    recomputation added it would be HFU. None where the peak of the device (`planner.hardware`) is
    not known: never a guess.
    """
    return tokens_per_s_per_device * flops_per_token / peak_flops if peak_flops else None
