"""Defaults that changed under files that do not say them."""

from __future__ import annotations

from collections.abc import Iterator

from ds_llama.config.problems import Problem
from ds_llama.config.rules import Context


def clipping(context: Context) -> Iterator[Problem]:
    """runtime/constants.py:203: 0 (off) until 2026, 1.0 since."""
    if context.dialect == "deepspeed" and not context.has("gradient_clipping"):
        yield Problem(
            "changed-default",
            "warning",
            "gradient_clipping",
            "gradient_clipping is not given: 1.0 in this DeepSpeed, 0 (off) before 2026",
            "write the one that you mean",
        )
