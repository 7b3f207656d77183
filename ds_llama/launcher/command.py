"""argv of DeepSpeed's launcher, and what it must not get to see."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from ds_llama.errors import CallError
from ds_llama.launcher import hostfile as hostfiles
from ds_llama.launcher.environment import count_devices, has_device

# Between hosts DeepSpeed joins the arguments into one line for a shell on the other side.
_SAFE_FOR_A_SHELL = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")


def local(arguments: Sequence[str], nproc: int, env: dict[str, str], module: str) -> list[str]:
    """argv for `nproc` ranks of `python -m module arguments…` on this machine.

    Takes CUDA_VISIBLE_DEVICES out of `env`: DeepSpeed drops it when told how many ranks to start,
    and would take devices 0 to nproc - 1 whatever the user said. They go into --include instead.
    """
    if nproc < 1:
        raise CallError(f"{nproc} processes cannot train", where="--nproc", remedy="give 1 or more")
    devices = _devices(nproc, env)
    chosen = ["--num_accelerators", str(nproc)]
    if devices:
        chosen = ["--include", f"localhost:{','.join(devices)}"]
    # Without --hostfile DeepSpeed reads /job/hostfile, and would leave this machine.
    return [*_runner(), "--hostfile", os.devnull, *chosen, "--module", module, *arguments]


def multinode(arguments: Sequence[str], path: Path | str, module: str) -> tuple[list[str], int]:
    """argv for the ranks of a hostfile, and how many these are.

    DeepSpeed's runner is given the file, and reaches the hosts through pdsh and ssh. Raises
    CallError for an argument that the shells on the way would change.
    """
    hosts = hostfiles.read(path)
    for argument in arguments:
        if not _SAFE_FOR_A_SHELL.fullmatch(argument):
            raise CallError(
                f"{argument!r} would not arrive unchanged: a shell on each host reads it",
                where="command line",
                remedy="write the value into the run's JSON, and give no blanks or quotes here",
            )
    argv = [*_runner(), "--hostfile", str(path), "--module", module, *arguments]
    return argv, sum(host.slots for host in hosts)


def _runner() -> list[str]:
    runner = [sys.executable, "-m", "deepspeed.launcher.runner", "--log_level", "critical"]
    return [*runner, "--master_port", str(_free_port())]


def _devices(nproc: int, env: dict[str, str]) -> list[str]:
    """The devices that the user chose, the first `nproc`; empty when none were, or on CPU."""
    if not has_device(env):
        env.pop("CUDA_VISIBLE_DEVICES", None)
        return []
    given = env.pop("CUDA_VISIBLE_DEVICES", None)
    devices = [] if given is None else [device.strip() for device in given.split(",")]
    if not all(device.isdigit() for device in devices):
        raise CallError(
            f"CUDA_VISIBLE_DEVICES={given} is not a list of indices, which DeepSpeed needs",
            where="CUDA_VISIBLE_DEVICES",
            remedy="give indices as `nvidia-smi -L` numbers them, for example 0,1",
        )
    available = len(devices) if given is not None else count_devices()
    if available is not None and nproc > available:
        raise CallError(
            f"{nproc} processes on {available} device(s)",
            where="--nproc",
            remedy=f"give --nproc {available}, or DS_ACCELERATOR=cpu to compute without devices",
        )
    return devices[:nproc]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
