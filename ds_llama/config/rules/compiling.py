"""What `train.compile` does not go with in the DeepSpeed JSON."""

from __future__ import annotations

from collections.abc import Iterator

from ds_llama.config.problems import Problem
from ds_llama.config.rules import Context

_ZERO = "zero_optimization"


def compiled_blocks(context: Context) -> Iterator[Problem]:
    """zero/compiling.py: blocks are compiled whole, and gathered whole at stage 3."""
    if context.run is None or not context.run.train.compile:
        return
    if context.get("compile.deepcompile", False):
        yield _refused(
            "compile.deepcompile", "DeepCompile compiles the whole model, by passes of its own"
        )
    if context.stage == 3 and context.offload("offload_param") == "nvme":
        yield _refused(
            f"{_ZERO}.offload_param.device",
            "a block's weights would be gathered together, and a buffer is kept for each that is "
            "read from NVMe (buffer_count)",
            'write "cpu"',
        )
    if context.has(f"{_ZERO}.zenflow"):
        yield _refused(f"{_ZERO}.zenflow", "it transposes weights between hooks")


def _refused(key: str, why: str, mend: str = "remove it") -> Problem:
    return Problem(
        "not-compiled",
        "error",
        key,
        f"train.compile does not go with {key.removeprefix(_ZERO + '.')}: {why}",
        f"{mend}, or remove train.compile from the run",
    )
