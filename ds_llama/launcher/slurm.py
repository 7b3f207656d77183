"""Ranks that `srun` starts: what DeepSpeed and torch need to know of them, from SLURM_*.

    srun --ntasks-per-node=N python -m ds_llama train RUN.json

Every task of the step is a rank. RANK in the environment means that another launcher has started
this process, inside of the step or not, and is right. Where there are SLURM_* and no step of
several tasks around (a batch script, salloc's shell, `srun --pty`), there is nothing to do: sbatch
hands on what it finds in its own environment, so the variables alone do not say.
"""

from __future__ import annotations

import os
import re
import socket
import tempfile
import warnings
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from ds_llama.errors import CallError, ConfigError, MachineError
from ds_llama.launcher import marks, nodelist, routes
from ds_llama.launcher.environment import rank_environment
from ds_llama.launcher.orphan import die_with_parent

_STEP = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
_TITLE = re.compile(r"slurmstepd: \[[0-9]+\.(\w+)\]")


@dataclass(frozen=True)
class Task:
    """One task of a step: its rank of `world_size`, its place among the `local_size` of its node.

    nodes: the step's, in the order of their ranks; node: this one's index in it.
    """

    job_id: int
    step_id: int
    rank: int
    world_size: int
    local_rank: int
    local_size: int
    node: int
    nodes: list[str]

    @property
    def port(self) -> int:
        """Where the ranks meet, 12000 to 31999: below the ports that Linux hands out by itself.

        Eight steps of a job, and 2500 jobs in a row, have ports of their own.
        """
        return 12000 + (self.job_id * 8 + self.step_id % 8) % 20000


def become_rank(env: MutableMapping[str, str] = os.environ) -> None:
    """Have this process be the rank that its task in a step of several is; before torch is there.

    Sets what a launcher sets, and leaves MASTER_ADDR, MASTER_PORT, GLOO_SOCKET_IFNAME and
    OMP_NUM_THREADS to a user who has set them. The process dies when its parent does.

    Raises ConfigError where Slurm's variables contradict each other, CallError where WORLD_SIZE
    contradicts them, and MachineError when the ranks cannot meet.
    """
    if "RANK" in env or not in_step(env):
        return
    task = read(env)
    given = env.get("WORLD_SIZE", str(task.world_size))
    if given != str(task.world_size):
        raise CallError(
            f"WORLD_SIZE is {given}, and this srun has {task.world_size} tasks",
            where="WORLD_SIZE",
            remedy="do not set it: srun's tasks are the ranks",
        )
    env.setdefault("MASTER_ADDR", task.nodes[0])
    env.setdefault("MASTER_PORT", str(task.port))
    _require_meeting_point(task, env["MASTER_ADDR"], env["MASTER_PORT"])
    if interface := _interface(task, env["MASTER_ADDR"]):
        env.setdefault("GLOO_SOCKET_IFNAME", interface)
    env.setdefault("OMP_NUM_THREADS", str(_threads(task, env)))
    env.update(
        RANK=str(task.rank),
        WORLD_SIZE=str(task.world_size),
        LOCAL_RANK=str(_device(task, env)),
        LOCAL_SIZE=str(task.local_size),
        LOCAL_WORLD_SIZE=str(task.local_size),
    )
    env.update(rank_environment(task.local_size, env))
    if folder := _folder(task, env):
        env.setdefault(marks.FOLDER, folder)
    # As PYTHONWARNINGS in rank_environment, which this interpreter has read already.
    warnings.filterwarnings("ignore", "", FutureWarning, r"torch\.distributed\.c10d_logger")
    die_with_parent()


def in_step(env: Mapping[str, str]) -> bool:
    """Whether this process is one of several tasks that srun started, or was started by one."""
    if any(name not in env for name in _STEP) or env["SLURM_STEP_NUM_TASKS"] == "1":
        return False
    if "SLURM_PTY_PORT" in env and _has_terminal():
        return False  # the other tasks of `srun --pty bash` have ended at once
    with suppress(psutil.Error, OSError):
        for parent in psutil.Process().parents():
            found = _TITLE.match(" ".join(parent.cmdline()))
            if found:
                return found[1].isdigit()  # not "batch" or "interactive"
    return True  # in a container that does not see slurmstepd


def refuse_in_step(env: Mapping[str, str] = os.environ) -> None:
    """For what starts ranks by itself: CallError in one of several tasks, which would all do it."""
    if in_step(env):
        tasks = env["SLURM_STEP_NUM_TASKS"]
        raise CallError(
            f"each of this srun's {tasks} tasks would start ranks of its own",
            where="--nproc",
            remedy="leave --nproc away, since srun's tasks are the ranks; or srun --ntasks=1",
        )


def read(env: Mapping[str, str]) -> Task:
    """The task that SLURM_* of a step describe. Raises ConfigError where they do not agree."""
    nodes = nodelist.expand(_get(env, "SLURM_STEP_NODELIST"), "SLURM_STEP_NODELIST")
    name = "SLURM_STEP_TASKS_PER_NODE"
    tasks = nodelist.counts(_get(env, name), name)
    numbers = ("PROCID", "LOCALID", "NODEID", "STEP_NUM_TASKS", "JOB_ID", "STEP_ID")
    found = {number: _number(env, f"SLURM_{number}") for number in numbers}
    node, world_size = found["NODEID"], found["STEP_NUM_TASKS"]
    if (
        len(nodes) != len(tasks)
        or sum(tasks) != world_size
        or not node < len(nodes)
        or not found["LOCALID"] < tasks[node]
        or not found["PROCID"] < world_size
    ):
        names = ("STEP_NODELIST", "STEP_TASKS_PER_NODE", *numbers[:4])
        raise _disagree(env, *(f"SLURM_{name}" for name in names))
    return Task(
        job_id=found["JOB_ID"],
        step_id=found["STEP_ID"],
        rank=found["PROCID"],
        world_size=world_size,
        local_rank=found["LOCALID"],
        local_size=tasks[node],
        node=node,
        nodes=nodes,
    )


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY))
    except OSError:
        return False
    return True


def _require_meeting_point(task: Task, address: str, port: str) -> None:
    if not port.isdigit() or not 0 < int(port) < 65536:
        remedy = f"give a free port, or leave it away: {task.port} is this step's"
        raise CallError(f"MASTER_PORT={port} is not a port", where="MASTER_PORT", remedy=remedy)
    here = task.nodes[task.node]
    try:
        socket.getaddrinfo(address, int(port))
    except OSError as error:
        raise MachineError(
            f"{here} does not know {address}, where the ranks are to meet: {error.strerror}",
            where=f"MASTER_ADDR={address}",
            remedy=f"export MASTER_ADDR with the address of {task.nodes[0]} before srun",
        ) from None
    if task.rank != 0:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except OSError as error:
            raise MachineError(
                f"the ranks cannot meet at port {port} of {here}: {error.strerror}",
                where=f"MASTER_PORT={port}",
                remedy="run srun again, whose next step has another port, or export MASTER_PORT",
            ) from None


def _interface(task: Task, master: str) -> str | None:
    """The interface on the way to another node."""
    if len(task.nodes) == 1:
        return "lo" if Path("/sys/class/net/lo").exists() else None
    peer = master if task.node else task.nodes[1]
    with suppress(OSError):
        address = routes.source(str(socket.getaddrinfo(peer, None)[0][4][0]))
        return routes.interface(address) if address else None
    return None


def _threads(task: Task, env: Mapping[str, str]) -> int:
    """Cores of this task, or its share of the node's: a task that is not bound sees them all."""
    if env.get("SLURM_CPUS_PER_TASK", "").isdigit():
        return int(env["SLURM_CPUS_PER_TASK"])
    cores = env.get("SLURM_CPUS_ON_NODE", "")
    return max(1, int(cores) // task.local_size) if cores.isdigit() else 1


def _device(task: Task, env: Mapping[str, str]) -> int:
    """What DeepSpeed takes LOCAL_RANK for: the index of a device among those that are seen, which
    is 0 for each task under `--gpus-per-task=1`."""
    seen = [word for word in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    return 0 if len(seen) == 1 else task.local_rank


def _folder(task: Task, env: Mapping[str, str]) -> str | None:
    """A folder that the ranks of a node share, so that a mistake is told once a node."""
    attempt = env.get("SLURM_RESTART_COUNT", "0")
    name = f"ds-llama-{os.getuid()}-{task.job_id}.{task.step_id}.{attempt}"
    path = Path(tempfile.gettempdir(), name)
    with suppress(OSError):
        path.mkdir(mode=0o700, exist_ok=True)
        if path.stat().st_uid == os.getuid():
            return str(path)
    return None


def _get(env: Mapping[str, str], name: str) -> str:
    if name not in env:
        raise ConfigError(
            f"{name} is not set, and SLURM_JOB_ID is",
            where=name,
            remedy="start this by srun, sbatch or salloc, and pass on all of SLURM_*",
        )
    return env[name]


def _number(env: Mapping[str, str], name: str) -> int:
    text = _get(env, name)
    if not re.fullmatch("[0-9]{1,10}", text, re.ASCII):
        raise _disagree(env, name)
    return int(text)


def _disagree(env: Mapping[str, str], *names: str) -> ConfigError:
    shown = ", ".join(f"{name}={env[name]}" for name in names)
    return ConfigError(
        f"Slurm's variables do not describe a step: {shown}",
        where=names[0],
        remedy="do not set SLURM_* by hand; start a step by srun",
    )
