"""argv of DeepSpeed's launcher, and what it must not get to see."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Sequence

from ds_llama.errors import CallError
from ds_llama.launcher import routes
from ds_llama.launcher.environment import count_devices, has_device

_QUIET = ("--log_level", "critical")


def local(arguments: Sequence[str], nproc: int, env: dict[str, str], module: str) -> list[str]:
    """argv for `nproc` ranks of `python -m module arguments…` on this machine.

    It is that of DeepSpeed's launch.py, which its runner starts and waits for on one machine
    (deepspeed/launcher/runner.py:520): the runner would only import all of deepspeed once more.
    Takes CUDA_VISIBLE_DEVICES out of `env`: launch.py sets it, to the devices of its world info.
    """
    if nproc < 1:
        raise CallError(f"{nproc} processes cannot train", where="--nproc", remedy="give 1 or more")
    slots = _devices(nproc, env) or list(range(nproc))
    world = base64.urlsafe_b64encode(json.dumps({"localhost": slots}).encode()).decode()
    launch = [sys.executable, "-u", "-m", "ds_llama.launcher.node", f"--world_info={world}"]
    launch += ["--master_addr=127.0.0.1", f"--master_port={routes.free_port()}", *_QUIET]
    return [*launch, "--module", module, *arguments]


def _devices(nproc: int, env: dict[str, str]) -> list[int]:
    """The devices that the user chose, the first `nproc`; empty when none were, or on CPU."""
    if not has_device(env):
        env.pop("CUDA_VISIBLE_DEVICES", None)
        return []
    given = env.pop("CUDA_VISIBLE_DEVICES", None)
    words = [] if given is None else [device.strip() for device in given.split(",")]
    there = count_devices()
    if not all(map(str.isdecimal, words)):
        raise _wrong(f"={given} is not a list of indices, which DeepSpeed needs")
    devices = list(map(int, words))
    if len(set(devices)) < len(devices):
        raise _wrong(f"={given} has a device twice, which ranks would share")
    if there is not None and max(devices, default=0) >= there:
        raise _wrong(f"={given} is of more than the {there} device(s) that are there")
    available = there if given is None else len(devices)
    if available is not None and nproc > available:
        raise CallError(
            f"{nproc} processes on {available} device(s)",
            where="--nproc",
            remedy=f"give --nproc {available}, or DS_ACCELERATOR=cpu to compute without devices",
        )
    return devices[:nproc]


def _wrong(what: str) -> CallError:
    name = "CUDA_VISIBLE_DEVICES"
    remedy = "give indices as `nvidia-smi -L` numbers them, for example 0,1"
    return CallError(f"{name}{what}", where=name, remedy=remedy)
