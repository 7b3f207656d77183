"""What a device and its node can do, each figure with its source: `devices.json`, one row a device.

Dense peaks only: where a data sheet prints the figure "with sparsity", half of it stands there.
What no row says is None. A peak that is guessed makes every MFU a fiction: a device that is taken
for another reads several times too high or too low, and nobody sees it.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from ds_llama.errors import CallError

_TERA = 1e12
_DTYPES = {
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "float32": "float32",
    "fp32": "float32",
    "tf32": "tf32",
}

# What people call a device when they mean its commonest form.
_SHORT = {
    "v100": "v100-sxm-32gb",
    "v100-sxm": "v100-sxm-32gb",
    "v100-pcie": "v100-pcie-32gb",
    "a100": "a100-sxm-80gb",
    "a100-sxm": "a100-sxm-80gb",
    "a100-pcie": "a100-pcie-80gb",
    "a100-40gb": "a100-sxm-40gb",
    "a100-80gb": "a100-sxm-80gb",
    "h100": "h100-sxm",
    "h200": "h200-sxm",
}


@dataclass(frozen=True)
class Hardware:
    """One device as one process sees it (an AMD card of two dies is two), in its usual node.

    pattern: a regular expression over the whole lower-cased name that
        `torch.cuda.get_device_name` reports; empty for a measured profile.
    tflops: dense TFLOP/s of matmuls with fp32 accumulation by dtype; None where the device cannot
        do it, or the vendor does not say.
    matmul_fraction: the share of that which the fastest matmul was measured to reach.
    link_bytes_per_s: to the other devices of the node, one way; internode_bytes_per_s: to other
        nodes, one way, a device's share of the node's adapters; host_link_bytes_per_s: to the
        host, one way. host_memory_bytes_per_s and nvme_*_bytes_per_s are the node's, shared by
        its `devices_per_node`.
    launch_s: time of one operation that does next to nothing; collective_latency_s: of one
        collective that carries next to nothing.
    shared: the ranks of a node share one device, a CPU. by_ranks: of such a device, the figures
        that one of N ranks gets while the others are as busy, by N as a string.
    measured: the figures are rates that were reached, of which nothing is taken off.
    sources: where each figure is from. None means not known: what needs it is not predicted.
    """

    key: str
    pattern: str
    tflops: dict[str, float | None]
    sources: dict[str, str]
    matmul_fraction: float | None = None
    attention_fraction: float | None = None
    memory_bytes: int | None = None
    memory_bytes_per_s: float | None = None
    link_bytes_per_s: float | None = None
    internode_bytes_per_s: float | None = None
    host_link_bytes_per_s: float | None = None
    host_memory_bytes_per_s: float | None = None
    nvme_read_bytes_per_s: float | None = None
    nvme_write_bytes_per_s: float | None = None
    devices_per_node: int = 8
    launch_s: float | None = None
    collective_latency_s: float | None = None
    shared: bool = False
    by_ranks: dict[str, dict[str, Any]] = field(default_factory=dict)
    measured: bool = False

    @property
    def source(self) -> str:
        """Where the peaks are from."""
        return self.sources["tflops"]

    def peak_flops(self, dtype: str, *, tf32: bool = False) -> float | None:
        """Peak FLOP/s of matmuls in `dtype` ("bfloat16", "float16", "float32" or "tf32").

        `tf32` says that fp32 matmuls may run on TF32 tensor cores
        (`torch.backends.cuda.matmul.allow_tf32`); torch's default is that they may not.
        """
        name = _DTYPES.get(dtype.removeprefix("torch."), "")
        if name == "float32" and tf32 and self.tflops.get("tf32") is not None:
            name = "tf32"
        tflops = self.tflops.get(name)
        return None if tflops is None else tflops * _TERA

    def one_of(self, ranks: int) -> Hardware:
        """What one of `ranks` on a node has: a GPU to itself, its part of a CPU.

        Of the measured numbers of ranks the nearest that is not larger; beyond it rates are shared
        out, and operations wait for each other only where there are more ranks than cores.
        """
        if not self.shared:
            return self
        nearest = max((n for n in map(int, self.by_ranks) if n <= ranks), default=1)
        own = replace(self, **self.by_ranks.get(str(nearest), {}))
        part, queue = nearest / ranks, max(1.0, ranks / max(nearest, self.devices_per_node))
        return replace(
            own,
            tflops={name: value and value * part for name, value in own.tflops.items()},
            memory_bytes_per_s=own.memory_bytes_per_s and own.memory_bytes_per_s * part,
            launch_s=own.launch_s and own.launch_s * queue,
        )

    def with_internode(self, rate: str | float) -> Hardware:
        """This device with another share of the network: "400Gb/s" or bytes per second."""
        sources = {**self.sources, "internode_bytes_per_s": "given"}
        return replace(self, internode_bytes_per_s=parse_rate(rate), sources=sources)


@cache
def table() -> tuple[Hardware, ...]:
    """Every device that is known by name."""
    rows = json.loads(Path(__file__).with_name("devices.json").read_text())
    return tuple(Hardware(key=key, **row) for key, row in rows.items())


def reported(device_name: str) -> Hardware | None:
    """The row of a name as `torch.cuda.get_device_name()` reports it, or None.

    None for an unknown device, for a variant whose figures are not known (a memory size or a
    suffix that no data sheet has), and for a MIG slice, which is a fraction of its device.
    """
    name = " ".join(device_name.lower().split())
    for row in table():
        if row.pattern and re.fullmatch(row.pattern, name):
            return row
    return None


def find(name: str) -> Hardware:
    """The row of a name that a person types ("h100", "a100-pcie") or that nvidia-smi says, of a
    profile's file, or of "local".

    "local" is what `ds-llama plan --calibrate` wrote last. Raises CallError.
    """
    given = name.strip()
    if given == "local" or given.endswith(".json"):
        return read_profile(profile_path() if given == "local" else Path(given))
    key = given.lower()
    key = _SHORT.get(key, key)
    rows = {row.key: row for row in table()}
    found = rows.get(key) or reported(given)
    if found is not None:
        return found
    names = sorted([*rows, *_SHORT])
    near = difflib.get_close_matches(given.lower(), names, n=1)
    hint = f'did you mean "{near[0]}"? ' if near else ""
    raise CallError(
        f'unknown hardware "{name}"',
        where="--hardware",
        remedy=f'{hint}known: {", ".join(names)}; "local" or a .json file for a measured profile',
    )


def peak_flops(device_name: str | None, dtype: str, *, tf32: bool = False) -> float | None:
    """Peak FLOP/s of the device of a reported name in `dtype`, None where it is not known."""
    row = reported(device_name) if device_name else None
    return None if row is None else row.peak_flops(dtype, tf32=tf32)


def profile_path() -> Path:
    """Where the measured profile of this machine lives, after the XDG base directory rules."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "ds_llama" / "hardware.json"


def read_profile(path: Path) -> Hardware:
    """A profile that `ds-llama plan --calibrate` wrote, or one that a person did: {"base": "h100"}
    and the figures that are other than that device's, its node's NVMe for one. Raises CallError.
    """
    remedy = "measure this machine: ds-llama plan --calibrate"
    try:
        content: Any = json.loads(path.read_text())
        if isinstance(content, dict) and "base" in content:
            found = _based(content, path)
        else:
            found = Hardware(**{**content, "pattern": "", "measured": True})
        _check_figures(found)
        return found
    except OSError as error:
        raise CallError(
            f"no hardware profile there: {error.strerror}", where=str(path), remedy=remedy
        ) from None
    except (ValueError, TypeError) as error:
        raise CallError(
            f"the file is not a hardware profile: {error}", where=str(path), remedy=remedy
        ) from None


def _based(content: dict[str, Any], path: Path) -> Hardware:
    """The named device with the figures of the file, each of which has the file for its source."""
    own = {name: value for name, value in content.items() if name not in ("base", "sources")}
    key = str(content["base"]).strip().lower()
    base = {row.key: row for row in table()}.get(_SHORT.get(key, key))
    if base is None:
        raise ValueError(f"base {content['base']!r} is no device that is known")
    if "tflops" in own:
        own["tflops"] = {**base.tflops, **own["tflops"]}
    return replace(base, **own, sources={**base.sources, **dict.fromkeys(own, f"given in {path}")})


_KINDS = {"key": str, "pattern": str, "tflops": dict, "sources": dict, "by_ranks": dict}


def _check_figures(found: Hardware) -> None:
    """Raises ValueError for what is no figure: nobody has looked at the file since it was made."""
    values = vars(found)
    for name, kind in _KINDS.items():
        if not isinstance(values[name], kind):
            raise ValueError(f"{name} is {values[name]!r}")
    if not isinstance(found.sources.get("tflops"), str):
        raise ValueError("sources do not say where tflops is from")
    figures = {name: value for name, value in values.items() if name not in _KINDS}
    for ranks in found.by_ranks:
        if not ranks.isdecimal() or not int(ranks):
            raise ValueError(f"by_ranks has {ranks!r} for a number of ranks")
        own = replace(found, **found.by_ranks[ranks], by_ranks={})
        _check_figures(own)
    for name, value in {**figures, **found.tflops}.items():
        if value is not None and not (isinstance(value, (int, float)) and 0 <= value < 1e30):
            raise ValueError(f"{name} is {value!r}")


_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]?)([bB])(?:/s|ps)\s*")
_PREFIX = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def parse_rate(value: str | float, *, where: str = "--internode") -> float:
    """Bytes per second of "400Gb/s" (bits), "50GB/s" (bytes) or a number. Raises CallError."""
    if not isinstance(value, str):
        return float(value)
    match = _RATE.fullmatch(value)
    if match is None or not float(match[1]):
        raise CallError(
            f"{value!r} is not a transfer rate",
            where=where,
            remedy="write bits as in 400Gb/s, or bytes as in 50GB/s",
        )
    return float(match[1]) * _PREFIX[match[2]] / (8 if match[3] == "b" else 1)
