"""What this machine has, asked without torch, and what a row says of where it was made."""

from __future__ import annotations

import functools
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from ds_llama.bench.case import Case
from ds_llama.config.resolve import versions
from ds_llama.planner.fit import Machine
from ds_llama.units import parse_bytes

_PROCESS_BYTES = 700_000_000  # of a rank, before any tensor: torch and DeepSpeed imported


def machine(case: Case, world_size: int, device: str) -> Machine:
    """What the plan may fill: `case`'s own words, or what is there now."""
    host = case.host_memory and parse_bytes(case.host_memory, where="host_memory")
    gpu = case.device_memory and parse_bytes(case.device_memory, where="device_memory")
    free = psutil.virtual_memory().available - _PROCESS_BYTES * world_size
    return Machine(
        world_size,
        gpus_per_node=world_size,
        gpu_bytes=gpu or (_gpu_bytes() if device == "cuda" else None),
        host_bytes=host or max(0, free),
        device=device,
    )


def provenance(arguments: list[str], device: str) -> dict[str, Any]:
    """Versions, commit, processor, cores, driver, command line."""
    return {
        "versions": versions() | {"python": platform.python_version()},
        "commit": _commit(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "driver": _nvidia("driver_version") if device == "cuda" else None,
        "command": ["ds-llama", *arguments],
    }


def _gpu_bytes() -> int | None:
    found = _nvidia("memory.total")
    return int(found) * 2**20 if found and found.isdigit() else None


@functools.cache
def _nvidia(what: str) -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    words = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    lines = done.stdout.split("\n")
    return lines[0].strip() if done.returncode == 0 else None


def _commit() -> str | None:
    """Of the checkout that the package is in, "-dirty" where it has changes; None outside one."""
    here = Path(__file__)
    tracked = _git(here.parent, "ls-files", "--error-unmatch", here.name)
    # An installed package may lie in a checkout of something else.
    return tracked and _git(here.parent, "describe", "--always", "--dirty", "--abbrev=12")


def _git(folder: Path, *words: str) -> str | None:
    command = ["git", "-C", str(folder), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _processor() -> str:
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()
