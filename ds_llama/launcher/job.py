"""What a launch over several hosts is: data that travels to each host as JSON, never by a shell."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ds_llama.launcher import envfile
from ds_llama.launcher.hostfile import Host


@dataclass(frozen=True)
class Job:
    """Ranks of `python -m module arguments…` on `hosts`, in their order.

    env: variables that every rank gets. ops: compiled on each host before its ranks start. logs: a
    folder on each host for what its ranks print; output: the run's folder, where a run has one.
    starter: what starts a host's ranks, DeepSpeed's launch.py or torchrun (`launcher.starter`).
    `master` is filled in once the first host has said where the others reach it.
    """

    hosts: tuple[Host, ...]
    module: str
    arguments: tuple[str, ...]
    logs: str
    output: str | None = None
    ops: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = field(default_factory=os.getcwd)
    python: str = sys.executable
    master_addr: str = ""
    master_port: int = 0
    starter: str = "deepspeed"

    @property
    def world_size(self) -> int:
        """Ranks on all hosts together."""
        return sum(host.slots for host in self.hosts)

    def ranks(self, index: int) -> range:
        """The ranks of host number `index`."""
        first = sum(host.slots for host in self.hosts[:index])
        return range(first, first + self.hosts[index].slots)

    def world_info(self) -> str:
        """Hosts and their devices as DeepSpeed's launch.py takes them (runner.py:413)."""
        world = {host.name: host.device_ids for host in self.hosts}
        return base64.urlsafe_b64encode(json.dumps(world).encode()).decode()

    def with_master(self, address: str, port: int) -> Job:
        """The same job, with the place where rank 0 listens."""
        return replace(self, master_addr=address, master_port=port)

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` undoes it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        """The job that `to_json` was of."""
        hosts = tuple(Host(**{**host, "devices": tuple(host["devices"])}) for host in data["hosts"])
        lists = {name: tuple(data[name]) for name in ("arguments", "ops")}
        return cls(**{**data, **lists, "hosts": hosts})


def exported(env: Mapping[str, str]) -> dict[str, str]:
    """What ranks on other hosts get of this environment and of `.deepspeed_env`.

    The working directory is on every rank's module path, as DeepSpeed has it (runner.py:583).
    Raises as `envfile.read`.
    """
    found = envfile.environment(env)
    paths = [os.getcwd(), *module_path(found)]
    return {**found, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def module_path(env: Mapping[str, str]) -> list[str]:
    """PYTHONPATH with which another host's Python finds this very package, installed or not."""
    root = Path(__file__).resolve().parents[2]
    own = [] if root.name.endswith("-packages") else [str(root)]
    given = env.get("PYTHONPATH", "").split(os.pathsep)
    return list(dict.fromkeys(filter(None, [*given, *own])))
