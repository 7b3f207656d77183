"""Under the Trainer or Accelerate: what they fill in, and what they stop at.

Read in transformers 5.23 (integrations/deepspeed.py) and accelerate 1.15 (utils/dataclasses.py,
accelerator.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ds_llama.config.problems import Problem
from ds_llama.config.rules import AUTO, Context

_DIALECT = "huggingface"


def section_missing(context: Context) -> Iterator[Problem]:
    """accelerate/utils/dataclasses.py:1277 raises."""
    known = "zero_optimization" not in context.broken and "zero_optimization" in context.deepspeed
    meant = "zero_optimization" in context.broken
    if context.dialect == _DIALECT and not known and not meant:
        yield Problem(
            "zero-missing",
            "error",
            "zero_optimization",
            "Accelerate, and the Trainer with it, stops at a JSON without zero_optimization",
            'write "zero_optimization": {"stage": 0} or the stage that you want',
        )


def clipping(context: Context) -> Iterator[Problem]:
    """integrations/deepspeed.py:137: an absent key is neither filled nor compared."""
    if context.dialect == _DIALECT and "gradient_clipping" not in context.deepspeed:
        yield Problem(
            "trainer-clipping",
            "warning",
            "gradient_clipping",
            "without gradient_clipping the Trainer's max_grad_norm is not passed on, and "
            "DeepSpeed clips at its own default: 1.0 in this release, off before 2026",
            'write "gradient_clipping": "auto"',
        )


def half_at_stage_0(context: Context) -> Iterator[Problem]:
    """The phantom step of `half-at-stage-0`, as soon as the Trainer is told --bf16 or --fp16."""
    if context.dialect != _DIALECT or context.stage != 0:
        return
    sections = {half: context.get(half) for half in ("bf16", "fp16")}
    switches = {
        half: section.get("enabled")
        for half, section in sections.items()
        if isinstance(section, Mapping)
    }
    for half, switch in switches.items():
        if switch == AUTO and True not in switches.values():
            yield Problem(
                "trainer-half-at-stage-0",
                "warning",
                f"{half}.enabled",
                f"with --{half} this is {half} at ZeRO stage 0, which takes a phantom optimizer "
                "step at initialisation",
                "take stage 1",
            )
