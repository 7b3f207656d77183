"""The hosts of a Slurm allocation, as a hostfile has them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ds_llama.errors import CallError, ConfigError
from ds_llama.launcher import hostfile, nodelist
from ds_llama.launcher.hostfile import Host

_GIVE_SLOTS = "give --slots N, the ranks of a node"


def hosts(env: Mapping[str, str], slots: int | None = None) -> list[Host]:
    """The allocation's nodes, each with `slots`, or as many as it has GPUs there, or else tasks.

    Raises CallError outside of an allocation, and ConfigError where Slurm's variables contradict
    each other or speak of other nodes, as those of a step of a part of the nodes do.
    """
    if "SLURM_JOB_ID" not in env or "SLURM_JOB_NODELIST" not in env:
        missing = next(name for name in ("SLURM_JOB_ID", "SLURM_JOB_NODELIST") if name not in env)
        raise CallError(
            f"this is no Slurm allocation: {missing} is not set",
            where=missing,
            remedy="call it in a batch script, or in the shell that salloc opens",
        )
    nodes = nodelist.expand(env["SLURM_JOB_NODELIST"])
    each = [slots] * len(nodes) if slots else _gpus(env, len(nodes)) or _tasks(env, len(nodes))
    found = [Host(node, count) for node, count in zip(nodes, each, strict=True)]
    hostfile.parse(text(found), "SLURM_JOB_NODELIST")  # what train will read
    return found


def text(hosts: list[Host]) -> str:
    """A hostfile of these hosts."""
    return "".join(f"{host.name} slots={host.slots}\n" for host in hosts)


def _gpus(env: Mapping[str, str], nodes: int) -> list[int]:
    """GPUs of each node; empty without any. Slurm tells those of this node, and of all together."""
    listed = [word for word in env.get("SLURM_JOB_GPUS", "").split(",") if word]
    here = _integer(env, "SLURM_GPUS_ON_NODE") or len(listed)
    if listed and len(listed) != here:
        raise _contradiction(env, "SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS")
    for name, count in (("SLURM_GPUS_PER_NODE", here), ("SLURM_GPUS", here * nodes)):
        said = _integer(env, name)
        if here and said is not None and said != count:
            raise _contradiction(env, "SLURM_GPUS_ON_NODE", name, "SLURM_JOB_NODELIST")
    return [here] * nodes if here else []


def _tasks(env: Mapping[str, str], nodes: int) -> list[int]:
    name = "SLURM_TASKS_PER_NODE"
    if name not in env:
        raise ConfigError(
            "Slurm does not say how many ranks a node has", where=name, remedy=_GIVE_SLOTS
        )
    found = nodelist.counts(env[name], name)
    if len(found) != nodes:
        raise _contradiction(env, name, "SLURM_JOB_NODELIST")
    return found


def _integer(env: Mapping[str, str], name: str) -> int | None:
    """The number of GPUs; a type may stand before it, as in `a100:4`. None where it is not set."""
    if name not in env:
        return None
    match = re.fullmatch(r"(?:[^:,]+:)?([0-9]{1,6})", env[name], re.ASCII)
    if match is None:
        what = f"{name}={env[name]} is not a number of GPUs"
        raise ConfigError(what, where=name, remedy=_GIVE_SLOTS)
    return int(match[1])


def _contradiction(env: Mapping[str, str], *names: str) -> ConfigError:
    shown = ", ".join(f"{name}={env[name]}" for name in names if name in env)
    return ConfigError(
        f"Slurm's variables contradict each other: {shown}",
        where=names[0],
        remedy=f"{_GIVE_SLOTS}; or call it where the allocation was made, and not in a step of it",
    )
