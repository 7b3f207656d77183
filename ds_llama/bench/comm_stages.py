"""What a step of each ZeRO stage moves, and how long that takes at the bandwidths measured.

Bytes and calls are the plan's (`planner.traffic`), of what DeepSpeed does and not of the paper.
Their time is that of messages of their mean size, at the bus bandwidth of the measured size that
is nearest to it. Nothing is taken off for what runs beside computation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ds_llama.bench.comm import ADDING
from ds_llama.config import load_run
from ds_llama.config.resolve import Resolved, resolve
from ds_llama.config.run import Run
from ds_llama.errors import ConfigError
from ds_llama.measure import bus
from ds_llama.planner import hardware as devices
from ds_llama.planner.hardware import Hardware
from ds_llama.planner.strategies import own_name, with_strategy
from ds_llama.planner.time import step_time
from ds_llama.planner.traffic import Traffic, element_bytes, traffic
from ds_llama.units import format_decimal_bytes

PRESET = "llama-3.2-1b"
NAMES = ("zero0", "zero1", "zero2", "zero3")
_DTYPES = {4: "fp32", 2: "bf16"}


@dataclass(frozen=True)
class Stage:
    """One stage of a run. `reason`: why the run cannot take it; then there is no more of it."""

    name: str
    own: bool = False
    resolved: Resolved | None = None
    traffic: Traffic | None = None
    reason: str | None = None


def read_run(path: str | None) -> Run:
    """The run of a file; or that of `PRESET` in bf16, 2048 tokens a rank, without one."""
    if path is not None:
        return load_run(path)
    return load_run(
        {
            "model": {"preset": PRESET},
            "data": {"train": "none", "sequence_length": 2048},
            "optimizer": {"lr": 1e-4},
            "train": {"steps": 1, "micro_batch_size": 1},
            "deepspeed": "zero2",
            "output": "none",
        }
    )


def stages(run: Run, resolved: Resolved) -> list[Stage]:
    """Stages 0 to 3 of `run` without offload, on the ranks and device that it was resolved for."""
    own, found = own_name(run, resolved), list[Stage]()
    world_size, device = resolved.world_size, resolved.device
    for name in NAMES:
        try:
            variant = run if name == own else with_strategy(run, name)
            each = resolve(variant, world_size, device=device)
            found.append(Stage(name, name == own, each, traffic(each)))
        except ConfigError as error:
            found.append(Stage(name, reason=error.what))
    return found


def dtypes(resolved: Resolved) -> tuple[str, str]:
    """What weights are gathered in, and gradients reduced."""
    sent = resolved.deepspeed.get("communication_data_type")
    return _short(resolved.dtype), _short(sent or resolved.dtype)


def _short(dtype: str) -> str:
    """ "bf16", "fp16" or "fp32" of a dtype in torch's or DeepSpeed's words."""
    if dtype.removeprefix("torch.") in ("float16", "fp16", "half"):
        return "fp16"
    return _DTYPES[element_bytes(dtype) or 4]


def told(stage: Stage, document: dict[str, Any], device: Hardware | None) -> dict[str, Any]:
    """The stage's entry in `comm.json`: what it moves, in which time, beside its computation."""
    if stage.traffic is None or stage.resolved is None:
        number = NAMES.index(stage.name)
        words = f"stage {number} is refused: {stage.reason}"
        return {
            "name": stage.name,
            "stage": number,
            "own": False,
            "seconds": None,
            "sentence": words,
        }
    ranks, moved = document["world_size"], stage.traffic
    across = {k: bus.factor(k, ranks) * n for k, n in moved.collectives.items()}
    message = round(sum(moved.collectives.values()) / max(1, moved.calls))
    _, sent = dtypes(stage.resolved)
    rates = {kind: rate(document["rows"], kind, sent, message) for kind in across}
    known = [n / each for (kind, n) in across.items() if (each := rates[kind])]
    seconds = sum(known) if len(known) == len(across) else None
    time = step_time(stage.resolved, device, moved)
    entry = {
        "name": stage.name,
        "stage": stage.resolved.stage,
        "own": stage.own,
        "collectives": moved.collectives,
        "calls": moved.calls,
        "message_bytes": message,
        "link_bytes": sum(across.values()),
        "bus_bytes_per_s": rates,
        "seconds": seconds,
        "compute_s": None if time is None else time.compute_s,
        "compute_source": None if time is None or device is None else device.source,
    }
    return {**entry, "sentence": sentence(entry)}


def rate(rows: Sequence[dict[str, Any]], kind: str, dtype: str, message: int) -> float | None:
    """Bus bandwidth of a collective at the measured size nearest to `message`; None without one."""
    own = [
        row
        for row in rows
        if row["collective"] == kind and (row["dtype"] == dtype or kind not in ADDING)
    ]
    if not own:
        return None
    nearest = min(own, key=lambda row: abs(math.log(row["bytes"] / max(1, message))))
    return float(nearest["bus_bytes_per_s"])


def sentence(entry: dict[str, Any]) -> str:
    """What it means, in one sentence."""
    moved = format_decimal_bytes(entry["link_bytes"])
    words = f"stage {entry['stage']} moves {moved} a step over each link"
    seconds, compute_s = entry["seconds"], entry["compute_s"]
    if seconds is None:
        lacking = [kind for kind, each in entry["bus_bytes_per_s"].items() if each is None]
        return f"{words}; how long that takes is not known: {', '.join(lacking)} not measured"
    if seconds:
        over = format_decimal_bytes(entry["link_bytes"] / seconds)
        words += f": {format_seconds(seconds)} at {over}/s"
    if compute_s is None:
        return words
    share = f"{seconds / compute_s:.2g} times" if compute_s else "beside"
    return f"{words}, {share} the {format_seconds(compute_s)} that the plan has it compute"


def format_seconds(seconds: float) -> str:
    """Three digits: "2.1 s", "350 ms", "81.2 us"."""
    if seconds >= 999.5:
        return f"{seconds:,.0f} s"
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 0.9995:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def profile() -> Hardware | None:
    """What `ds-llama plan --calibrate` wrote, if it did. Raises CallError if it cannot be read."""
    path = devices.profile_path()
    return devices.read_profile(path) if path.exists() else None


def hardware(device: str, measured: Hardware | None) -> Hardware | None:
    """The measured profile if it is of this kind of device, or the row of a GPU's name."""
    if measured is not None and measured.shared == (device == "cpu"):
        return measured
    return None if device == "cpu" else devices.reported(device)
