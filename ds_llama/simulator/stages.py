"""A run at every ZeRO stage, to be looked at side by side."""

from __future__ import annotations

from ds_llama.config.fill import one_spelling
from ds_llama.config.resolve import resolve
from ds_llama.config.run import Run
from ds_llama.planner import strategies

_HALF = {"bf16": "bfloat16", "fp16": "float16"}
FULL = "stage 0, fp32 weights"


def every_stage(run: Run, world_size: int, device: str = "cuda") -> dict[str, Run]:
    """{label: run} for stages 0 to 3: its own as it is, the others by the shipped JSONs.

    Stage 0 refuses half precision (DeepSpeed's optimizer there updates once at initialisation); a
    run in it is shown with fp32 weights under autocast, which are as many bytes a parameter. Raises
    ConfigErrors where the run does not resolve.
    """
    own = resolve(run, world_size, device=device).stage
    found = {}
    for stage in range(4):
        other = run if stage == own else strategies.with_strategy(run, f"zero{stage}")
        half = [name for name in _HALF if name in other.deepspeed]
        if stage == 0 != own and half:
            tree = one_spelling(other.deepspeed)
            dtype = _HALF[half[0]]
            tree = {key: tree[key] for key in tree if key not in _HALF}
            tree["torch_autocast"] = {"enabled": True, "dtype": dtype}
            found[FULL] = other.model_copy(update={"deepspeed": tree})
        else:
            found[f"stage {stage}"] = other
    return found
