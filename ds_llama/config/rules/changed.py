"""Defaults that changed in 2026 under files that do not say them."""

from __future__ import annotations

from collections.abc import Iterator

from ds_llama.config.problems import Problem
from ds_llama.config.rules import Context


def defaults(context: Context) -> Iterator[Problem]:
    """runtime/constants.py:203, precision_config.py:56, zero/offload_config.py:45 and :75.

    Clipping changes what is learnt. The other two are mentioned only where it is not given either:
    a file that says it was looked at since.
    """
    if context.dialect != "deepspeed" or context.has("gradient_clipping"):
        return
    yield _changed("gradient_clipping", "1.0 in this DeepSpeed, 0 (off) before 2026")
    if context.bf16 and context.stage in (1, 2) and not context.has("bf16.check_grad_overflow"):
        words = "true in this DeepSpeed, false before 2026: a step that is not finite is skipped"
        yield _changed("bf16.check_grad_overflow", words)
    for name, stages in (("offload_optimizer", (1, 2, 3)), ("offload_param", (3,))):
        key = f"zero_optimization.{name}.pin_memory"
        if context.stage in stages and context.offload(name) and not context.has(key):
            words = (
                "true in this DeepSpeed, false before 2026: host memory that cannot be paged out"
            )
            yield _changed(key, words)


def _changed(key: str, words: str) -> Problem:
    name = key.rsplit(".", 1)[-1]
    message = f"{name} is not given: {words}"
    return Problem("changed-default", "warning", key, message, "write the one that you mean")
