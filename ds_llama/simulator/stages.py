"""A run at every ZeRO stage, to be looked at side by side."""

from __future__ import annotations

from ds_llama.config.fill import one_spelling
from ds_llama.config.resolve import resolve
from ds_llama.config.run import Run
from ds_llama.planner import strategies

_HALF = ("bf16", "fp16")
FULL = "stage 0, fp32"


def every_stage(run: Run, world_size: int, device: str = "cuda") -> dict[str, Run]:
    """{label: run} for stages 0 to 3: its own as it is, the others by the shipped JSONs.

    Stage 0 refuses half precision (DeepSpeed's optimizer there updates once at initialisation); a
    run in it is shown in fp32, which holds as many bytes a parameter and larger activations. Raises
    ConfigErrors where the run does not resolve.
    """
    own = resolve(run, world_size, device=device).stage
    found = {}
    for stage in range(4):
        other = run if stage == own else strategies.with_strategy(run, f"zero{stage}")
        label = f"stage {stage}"
        if stage == 0 != own and any(name in other.deepspeed for name in _HALF):
            label, whole = FULL, one_spelling(other.deepspeed)
            whole = {key: whole[key] for key in whole if key not in _HALF}
            other = other.model_copy(update={"deepspeed": whole})
        found[label] = other
    return found
