"""What Open MPI's and MPICH's mpirun have in common here."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from ds_llama.errors import CallError, MachineError
from ds_llama.launcher.job import Job, module_path


def find(names: Sequence[str]) -> str:
    """The first of these programs that is installed, else the last: a machine may have both MPIs,
    and `mpirun` is then either."""
    return next((name for name in names if shutil.which(name)), names[-1])


def require(program: str, signs: Sequence[str], launcher: str) -> None:
    """Raises MachineError unless the program is there and its version names one of `signs`."""
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, errors="replace", timeout=10
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise MachineError(
            f"{program} does not run here: {error}",
            where=f"--launcher {launcher}",
            remedy=f"install {launcher} here and on every host, or take --launcher ssh",
        ) from None
    if not any(sign in done.stdout for sign in signs):
        lines = done.stdout.strip().splitlines()
        raise MachineError(
            f"{program} is not that of {launcher}: {lines[0] if lines else 'no version'}",
            where=f"--launcher {launcher}",
            remedy="put the right one first on PATH, or name the launcher that this one is of",
        )


def placement(job: Job, launcher: str) -> str:
    """Hosts and their ranks as both MPIs take them: `a:2,b:3`.

    Raises CallError for a user in a host's name, which they take from ssh's settings only.
    """
    for host in job.hosts:
        if host.name != host.host:
            raise CallError(
                f"{launcher} takes no user in a host's name, and there is {host.name}",
                where=host.where or host.name,
                remedy=f"write `Host {host.host}` and `User …` into ~/.ssh/config",
            )
    return ",".join(f"{host.host}:{host.slots}" for host in job.hosts)


def rank(job: Job) -> list[str]:
    """argv of every rank. mpirun sends it as it is: no shell reads it on the other side."""
    place = [f"--world_info={job.world_info()}"]
    place += [f"--master_addr={job.master_addr}", f"--master_port={job.master_port}"]
    place += [f"--ops={','.join(job.ops)}", f"--logs={job.logs}"]
    program = [job.python, "-u", "-m", "ds_llama.launcher.mpi_rank"]
    return [*program, *place, job.module, *job.arguments]


def exported(job: Job) -> dict[str, str]:
    """What mpirun takes from its own environment to every rank's."""
    return {**job.env, "PYTHONPATH": os.pathsep.join(module_path(job.env))}
