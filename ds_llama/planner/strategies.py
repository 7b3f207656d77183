"""What a run could be instead: the same run under every ZeRO stage and offload.

A strategy is a JSON of `ds_configs/`, of which the `zero_optimization` section is laid into the
run's own DeepSpeed JSON. Precision, clipping, optimizer and everything else stay the run's, and
each candidate goes through `config.resolve`: what is planned is what `train` would do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ds_llama.config import shipped
from ds_llama.config.deepspeed import BATCH_KEYS
from ds_llama.config.files import read_object
from ds_llama.config.fill import one_spelling
from ds_llama.config.resolve import Resolved, resolve
from ds_llama.config.rules import Context
from ds_llama.config.run import Run
from ds_llama.errors import ConfigError

NAMES = (
    *("zero0", "zero1", "zero2", "zero3", "zero1_offload", "zero2_offload"),
    *("zero3_offload_optimizer", "zero3_offload"),
)
NVME_NAMES = ("zero3_nvme_optimizer", "zero3_nvme")
RECOMPUTE = "+recompute"
_SECTION = "activation_checkpointing"
_ZERO = "zero_optimization"
_OFFLOADS = ("offload_optimizer", "offload_param")
# Keys by which a JSON is more than its stage and its offloads, and what they are where it is not.
_MORE = {
    f"{_ZERO}.zero_hpz_partition_size": 1,
    f"{_ZERO}.zero_quantized_weights": False,
    f"{_ZERO}.zero_quantized_gradients": False,
    f"{_ZERO}.offload_optimizer.ratio": 1.0,
    f"{_ZERO}.offload_optimizer.super_offload": False,
    f"{_ZERO}.zenflow": None,
    "compile.deepcompile": False,
}


@dataclass(frozen=True)
class Candidate:
    """One strategy for a run. `own` marks the run as it was given."""

    name: str
    run: Run
    resolved: Resolved
    own: bool = False

    @property
    def recompute(self) -> bool:
        return self.resolved.run.train.recompute is not None


@dataclass(frozen=True)
class Refused:
    """A strategy that this run cannot take, and the rule that says so."""

    name: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        return {"name": self.name, "reason": self.reason}


def candidates(
    run: Run, world_size: int, *, nvme: bool = False, device: str = "cuda"
) -> tuple[list[Candidate], list[Refused]]:
    """Every strategy for `run`, its own among them; and those that it cannot take.

    With and without recomputation where the run does not say. nvme: also with NVMe, for a run
    that names no `nvme_path`. Raises ConfigErrors where the run itself does not resolve.
    """
    own = own_candidate(run, world_size, device=device)
    path = _nvme_path(run.deepspeed)
    names = NAMES + (NVME_NAMES if nvme or path else ())
    runs = [(name, with_strategy(run, name, path)) for name in names if name != own.name]
    found, refused = [own], list[Refused]()
    for name, other in [*runs, (own.name, run)]:
        for label, variant in _variants(name, other, fixed=fixes_recompute(run)):
            if variant is run:
                continue
            try:
                resolved = resolve(variant, world_size, device=device)
                found.append(Candidate(label, variant, resolved))
            except ConfigError as error:
                refused.append(Refused(label, error.what))
    order = [*names, own.name]
    found.sort(key=lambda each: (order.index(_base(each.name)), each.recompute))
    return found, refused


def least(run: Run, *, nvme: bool) -> Iterator[tuple[str, Run]]:
    """`run` under the strategies that hold the least, on the devices or on the hosts.

    No other fits where none of these does: what they shard the others hold whole, and without
    recomputation more is held. The run as it is comes first, without a name, and then the one that
    moves the fewest bytes.
    """
    path, fixed = _nvme_path(run.deepspeed), fixes_recompute(run)
    yield "", run
    for name in (*NAMES, *(NVME_NAMES if nvme or path else ())):
        *_, (label, variant) = _variants(name, with_strategy(run, name, path), fixed=fixed)
        if name not in ("zero0", "zero1", "zero1_offload"):
            yield label, variant


def own_candidate(run: Run, world_size: int, *, device: str = "cuda") -> Candidate:
    """The run as it is, under the name of the shipped strategy that it takes."""
    resolved = resolve(run, world_size, device=device)
    return Candidate(own_name(run, resolved), run, resolved, own=True)


def _variants(name: str, run: Run, *, fixed: bool) -> Iterator[tuple[str, Run]]:
    yield name, run
    if not fixed:
        yield name + RECOMPUTE, with_recompute(run)


def _base(name: str) -> str:
    return name.removesuffix(RECOMPUTE)


def fixes_recompute(run: Run) -> bool:
    """Whether the run, or its DeepSpeed JSON, says that something is recomputed, or nothing."""
    return "recompute" in run.train.model_fields_set or _SECTION in run.deepspeed


def with_recompute(run: Run) -> Run:
    """`run` with every block recomputed, whatever it says."""
    train = run.train.model_copy(update={"recompute": None})
    section = run.deepspeed.get(_SECTION)
    deepspeed = {**run.deepspeed, _SECTION: {} if section is None else section}
    return run.model_copy(update={"train": train, "deepspeed": deepspeed})


def with_strategy(run: Run, name: str, nvme_path: str | None = None) -> Run:
    """`run` with the `zero_optimization` section of a shipped JSON."""
    tree = one_spelling(run.deepspeed)
    zero = dict(_shipped(name)[_ZERO])
    for offload in _OFFLOADS:
        if nvme_path is not None and zero.get(offload, {}).get("device") == "nvme":
            zero[offload] = {**zero[offload], "nvme_path": nvme_path}
    tree[_ZERO] = zero
    if Context(tree).get("compile.deepcompile", False):
        del tree["compile"]
    return run.model_copy(update={"deepspeed": tree})


def with_batch(run: Run, resolved: Resolved, *, micro: int, ranks: int) -> Run:
    """`run` with another micro batch or world, as a person would write it.

    The global batch becomes the next multiple where the run says it; where it does not, the
    accumulation steps stay.
    """
    step = micro * ranks
    total = step * resolved.accumulation_steps
    if fixed_global_batch(run):
        total = -(-resolved.global_batch_size // step) * step
    train = run.train.model_copy(update={"micro_batch_size": micro, "global_batch_size": total})
    deepspeed = {key: run.deepspeed[key] for key in run.deepspeed if key not in BATCH_KEYS}
    return run.model_copy(update={"train": train, "deepspeed": deepspeed})


def with_sequence(run: Run, length: int) -> Run:
    data = run.data.model_copy(update={"sequence_length": length})
    return run.model_copy(update={"data": data})


def fixed_global_batch(run: Run) -> bool:
    """Whether the run says its global batch, which a micro batch must then divide."""
    key = Context(run.deepspeed).get(BATCH_KEYS[0])
    return run.train.global_batch_size is not None or key is not None


def own_name(run: Run, resolved: Resolved) -> str:
    context = Context(resolved.deepspeed)
    place, prefix = run.deepspeed_place
    stem = place.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".json")
    names = [*NAMES, *NVME_NAMES]
    if all(context.get(key, plain) == plain for key, plain in _MORE.items()):
        for name in names:
            zero = _shipped(name)[_ZERO]
            offloads = tuple(zero.get(key, {}).get("device") for key in _OFFLOADS)
            given = (resolved.offload_optimizer, resolved.offload_param)
            if (zero["stage"], *offloads) == (resolved.stage, *given):
                return name
    return stem if not prefix and stem in shipped.names() and stem not in names else "own"


def _nvme_path(deepspeed: Mapping[str, Any]) -> str | None:
    context = Context(deepspeed)
    paths = [context.get(f"{_ZERO}.{offload}.nvme_path") for offload in _OFFLOADS]
    return next((str(path) for path in paths if path is not None), None)


@cache
def _shipped(name: str) -> dict[str, Any]:
    file = shipped.find(name)
    assert file is not None
    return read_object(file)
