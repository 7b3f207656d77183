"""Keys that DeepSpeed accepts and does not read at this stage, and those it stops at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ds_llama.config.base import shown
from ds_llama.config.deepspeed import SCHEMA, VERSION
from ds_llama.config.keys import Key, Section
from ds_llama.config.keys_zero import ZERO
from ds_llama.config.problems import Problem
from ds_llama.config.rules import Context

_ZERO = "zero_optimization"


def without_effect(context: Context) -> Iterator[Problem]:
    """Values that nothing reads at this stage; a switch as it is by default claims nothing."""
    yield from _idle(SCHEMA, context.deepspeed, "", context.stage)


def _idle(section: Section, value: Mapping[str, Any], path: str, stage: int) -> Iterator[Problem]:
    for name, inner in value.items():
        known, key = section.keys.get(name), f"{path}{name}"
        if known is None or inner is None or inner == "auto":
            continue
        idle = known.stages is not None and stage not in known.stages
        if isinstance(known, Section):
            off = not isinstance(inner, Mapping) or inner.get("device") == "none" or not inner
            if idle and not off:
                yield _problem(key, f"{name} does nothing", known, stage)
            elif not off:
                yield from _idle(known, inner, f"{key}.", stage)
        elif idle and not known.gone and (inner != known.default or _sized(known, inner)):
            yield _problem(key, f"{name} ({shown(inner)}) does nothing", known, stage)


def _sized(known: Key, value: Any) -> bool:
    """A number says that its author counts on it, also where it is the default."""
    return bool(known.stages) and not isinstance(value, (bool, str))


def _problem(key: str, what: str, known: Key | Section, stage: int) -> Problem:
    stages = sorted(known.stages or ())
    if not stages:
        message = f"{what}: DeepSpeed {VERSION} reads it and never asks for it again"
        return Problem("no-effect-anywhere", "error", key, message, "remove it")
    words = " or ".join(str(number) for number in stages)
    return Problem(
        "no-effect-at-stage",
        "error",
        key,
        f"{what} at ZeRO stage {stage}",
        f"remove it, or take stage {words}",
    )


def legacy_stage_1(context: Context) -> Iterator[Problem]:
    """runtime/engine.py:2650 raises."""
    if context.get(f"{_ZERO}.legacy_stage1", False):
        yield Problem(
            "legacy-stage-1",
            "error",
            f"{_ZERO}.legacy_stage1",
            "the old ZeRO stage 1 has been gone since DeepSpeed 0.5.9, which stops at this key",
            "remove it",
        )


def two_spellings(context: Context) -> Iterator[Problem]:
    """A key under both of its names: one of the two values wins in silence."""
    if "bf16" in context.deepspeed and "bfloat16" in context.deepspeed:
        yield _twice("bfloat16", "bf16")
    zero = context.get(_ZERO, {})
    for name in zero:
        known = ZERO.keys.get(name)
        if isinstance(known, Key) and known.same_as and known.same_as in zero:
            yield _twice(f"{_ZERO}.{name}", known.same_as)


def _twice(key: str, other: str) -> Problem:
    name = key.rsplit(".", 1)[-1]
    return Problem(
        "two-spellings",
        "error",
        key,
        f"{name!r} and {other!r} are one key, and both are given",
        f"keep {other!r}",
    )


def gradient_norm(context: Context) -> Iterator[Problem]:
    """stage_1_and_2.py:213-218, zero/config.py `compute_grad_norm_valid`."""
    if context.get(f"{_ZERO}.compute_grad_norm", True):
        return
    obstacles = {
        "gradient_clipping above 0 (1.0 is the default)": context.get("gradient_clipping", 1.0) > 0,
        "zenflow": context.has(f"{_ZERO}.zenflow"),
        "offload_optimizer": context.offload("offload_optimizer") is not None,
        f"ZeRO stage {context.stage}": context.stage not in (1, 2),
        "this package, which logs the norm": context.run is not None,
    }
    found = [name for name, true in obstacles.items() if true]
    if found:
        yield Problem(
            "no-gradient-norm",
            "error",
            f"{_ZERO}.compute_grad_norm",
            f"compute_grad_norm false does not go with {', '.join(found)}",
            "remove the key",
        )


def gradient_averaging(context: Context) -> Iterator[Problem]:
    """stage_1_and_2.py:348-351 and stage3.py:394-396 stop; stage 1 divides by the world first
    (stage_1_and_2.py `average_tensor`) and reads neither."""
    if context.stage == 0 or not context.get(f"{_ZERO}.reduce_scatter", True):
        return
    factor = context.get("gradient_predivide_factor", 1.0)
    given = {
        "prescale_gradients true": context.get("prescale_gradients", False),
        f"gradient_predivide_factor {factor:g}": factor != 1,
    }
    for what in [what for what, used in given.items() if used]:
        where = f"ZeRO stage {context.stage} with reduce_scatter, which is on by default"
        act = "does nothing at" if context.stage == 1 else "stops DeepSpeed at"
        yield Problem(
            "no-scaling-with-reduce-scatter",
            "error",
            what.split()[0],
            f"{what} {act} {where}",
            f'remove it, or write "reduce_scatter": false inside {_ZERO}',
        )


def summed_gradients(context: Context) -> Iterator[Problem]:
    """runtime/config.py `_do_error_check`; this package's loss weights count on the mean."""
    if str(context.get("gradient_allreduce_op", "mean")).lower() != "sum":
        return
    obstacles = {
        "ZeRO stage 3": context.stage == 3,
        "zenflow": context.has(f"{_ZERO}.zenflow"),
        "DeepCompile": context.get("compile.deepcompile", False),
        "a run of this package, whose token weights count on the mean": context.run is not None,
    }
    found = [name for name, true in obstacles.items() if true]
    if found:
        yield Problem(
            "summed-gradients",
            "error",
            "gradient_allreduce_op",
            f"gradient_allreduce_op 'sum' does not go with {', '.join(found)}",
            "remove it, or write 'mean'",
        )


def odd_bucket(context: Context) -> Iterator[Problem]:
    """stage_1_and_2.py:389 asserts an even number."""
    size = context.get(f"{_ZERO}.allgather_bucket_size")
    if context.stage in (1, 2) and size is not None and int(size) % 2:
        yield Problem(
            "odd-bucket",
            "error",
            f"{_ZERO}.allgather_bucket_size",
            f"allgather_bucket_size ({int(size)}) is odd, and DeepSpeed stops at that",
            f"write {int(size) + 1}",
        )
