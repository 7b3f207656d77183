"""MPICH's mpirun (Hydra), which starts and ends the ranks itself.

DeepSpeed's runner for it (deepspeed/launcher/multinode_runner.py:243) refuses --include and hosts
with different slots, cannot start a module (`python -m …/launcher_helper.py`), and exits 0 when a
rank fails. Hydra itself counts ranks by host.
"""

from __future__ import annotations

import shlex

from ds_llama.launcher.job import Job
from ds_llama.launcher.transports import SSH_OPTIONS, mpi

NAMES = ("mpirun.mpich", "mpiexec.hydra", "mpirun")


def commands(job: Job) -> list[list[str]]:
    """One argv; what it exports (-genvlist) is in `environment(job)`."""
    words = [mpi.find(NAMES), "-launcher", "ssh", "-n", str(job.world_size)]
    words += ["-hosts", mpi.placement(job, "mpich"), "-wdir", job.cwd]
    words += ["-genvlist", ",".join(sorted(mpi.exported(job)))]
    return [[*words, *mpi.rank(job)]]


def environment(job: Job) -> dict[str, str]:
    """What mpirun's environment has more than ours: ssh's options too."""
    return {**mpi.exported(job), "HYDRA_LAUNCHER_EXTRA_ARGS": shlex.join(SSH_OPTIONS)}


def require() -> None:
    """Raises MachineError where MPICH is not."""
    mpi.require(mpi.find(NAMES), ("HYDRA",), "mpich")
