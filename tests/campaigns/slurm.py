"""What becomes of a job of launch/slurm.sbatch when something happens to it, on a real Slurm.

    python -m tests.campaigns.slurm [--only PATTERN]

First that stages 1, 2 and 3 on two and three nodes, unevenly too, learn what one host with as many
ranks learns, number by number. Then, each in a job of two nodes of three that has made some steps
and saves every fifth: what ended it, how long its ranks lived on, how the job ended or went on, and
how many steps were made again. Prints a line a trial; exits with 1 when losses differ, a process is
left, or what is to be requeued did not go on. Needs root and Slurm (tests/multinode/slurm_cluster).
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import psutil

from tests.multinode import slurm_cluster
from tests.multinode.slurm_cluster import SlurmCluster, wait
from tests.multinode.slurm_runs import Runs

STEPS = 4
WAIT_S = 300.0
CELLS = {
    "zero1 on 2 nodes": ("zero1", 2, 2),
    "zero2 on 2 nodes, 2+1": ("zero2", 2, 3),
    "zero3 on 3 nodes": ("zero3", 3, 3),
}
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@dataclass
class Trial:
    """A job of a run that does not end by itself."""

    runs: Runs
    name: str
    job: str

    @property
    def cluster(self) -> SlurmCluster:
        return self.runs.cluster

    def ranks(self) -> list[psutil.Process]:
        """Its living ranks, that of the first node first."""
        found = self.cluster.processes(f"{self.name}.json")
        tasks = [process for process in found if "train" in process.info["cmdline"]]
        pythons = (p for p in tasks if Path(p.info["exe"] or "").name.startswith("python"))
        return sorted(
            (process for process in pythons if process.info["environ"]),
            key=lambda process: int(process.info["environ"]["SLURM_PROCID"]),
        )

    def sruns(self) -> list[psutil.Process]:
        """srun, which is two processes."""
        found = self.cluster.processes(f"{self.name}.json")
        return [process for process in found if process.info["name"] == "srun"]


def _kill_a_rank(trial: Trial) -> None:
    trial.ranks()[1].kill()


def _stop_a_rank(trial: Trial) -> None:
    trial.ranks()[1].suspend()


def _kill_srun(trial: Trial) -> None:
    for process in trial.sruns():
        process.kill()


def _cancel(trial: Trial) -> None:
    trial.cluster.ask("scancel", trial.job)


def _announce(trial: Trial) -> None:
    trial.cluster.ask("scancel", "--signal=USR1", trial.job)


def _crash(trial: Trial) -> None:
    trial.cluster.crash(trial.ranks()[1].info["environ"]["SLURMD_NODENAME"])


def _crash_first(trial: Trial) -> None:
    trial.cluster.crash(trial.ranks()[0].info["environ"]["SLURMD_NODENAME"])


def _nothing(trial: Trial) -> None:
    """Until Slurm itself does something: the limit is two minutes, announced 30 s before."""
    wait(lambda: "stopped at step" in trial.runs.printed(trial.job), WAIT_S, what="the limit")


@dataclass(frozen=True)
class Event:
    """What happens; whether the job is to go on after it, and options of its sbatch."""

    act: Callable[[Trial], None]
    goes_on: bool = False
    options: tuple[str, ...] = ()


EVENTS = {
    "announced (scancel -s USR1)": Event(_announce, goes_on=True),
    "time limit": Event(_nothing, goes_on=True, options=("--time=2", "--signal=USR1@30")),
    "scancel": Event(_cancel),
    "kill -9 of a rank": Event(_kill_a_rank),
    "a rank stands still": Event(_stop_a_rank),
    "kill -9 of srun": Event(_kill_srun),
    "second node crashes": Event(_crash, goes_on=True),
    "first node crashes": Event(_crash_first, goes_on=True),
}


def try_cell(runs: Runs, name: str) -> bool:
    """One run on nodes and on one host; whether they are equal."""
    strategy, nodes, ranks = CELLS[name]
    train = {"steps": STEPS, "global_batch_size": 12, "micro_batch_size": 1}
    key = re.sub(r"\W+", "-", name)
    there = runs.write(f"{key}-there", deepspeed=strategy, train=train)
    here = runs.write(f"{key}-here", deepspeed=strategy, train=train)
    tasks = (f"--nodes={nodes}", f"--ntasks={ranks}", "--ntasks-per-node=2", "--gpus-per-node=1")
    job = runs.submit(there, *tasks)
    runs.cluster.wait_for(job, *ENDED, timeout_s=WAIT_S)
    code = runs.start_here(here, ranks).wait(WAIT_S)
    ours, theirs = runs.curve(f"{key}-there"), runs.curve(f"{key}-here")
    same = code == 0 and len(ours) == STEPS and ours == theirs
    losses = " ".join(f"{row[1]:.6f}" for row in ours)
    print(f"{name:30}{'same' if same else 'DIFFERS from ' + str(theirs)}: {losses}", flush=True)
    return same


def try_event(runs: Runs, name: str) -> bool:
    """One job, one event; whether all is as it should be."""
    event, key = EVENTS[name], re.sub(r"\W+", "-", name)
    run = runs.write(
        key,
        checkpoint={"export": False, "every_steps": 5},
        stability={"hang_timeout_s": 10},
    )
    trial = Trial(runs, key, runs.submit(run, *event.options))
    runs.wait_for_steps(key, 12, WAIT_S)
    ranks = trial.ranks()
    event.act(trial)
    start, made = time.monotonic(), len(runs.curve(key))
    wait(lambda: not any(map(_lives, ranks)), WAIT_S, what=f"{name}: the end of its ranks")
    took_s = time.monotonic() - start
    went_on, saved = _settle(trial), runs.newest(key) or 0
    state = trial.cluster.state(trial.job)
    if went_on:
        came = re.findall(r"going on from step-(\d+)", runs.printed(trial.job))
        end, lost = "requeued, goes on", f"{max(0, made - int(came[-1]))} steps again"
    else:
        end = f"{state['JobState']}, exit code {state['ExitCode']}"
        lost = f"{max(0, made - saved)} steps not saved"
    trial.cluster.cancel_all()
    left = [process for process in ranks if _lives(process)] + trial.ranks()
    print(f"{name:30}gone in {took_s:5.1f} s  {end:32}{lost:20}{len(left)} left", flush=True)
    print(_tail(runs.printed(trial.job)), file=sys.stderr, flush=True)
    return went_on == event.goes_on and not left


def _settle(trial: Trial) -> bool:
    """Until the job has ended, or has been begun again and is past its checkpoint; whether so."""

    def settled() -> bool:
        state = trial.cluster.state(trial.job)
        again = state["Restarts"] != "0" and "going on from" in trial.runs.printed(trial.job)
        return again or state["JobState"] in ENDED

    wait(settled, WAIT_S, what=f"job {trial.job} to end or go on", every_s=0.5)
    return "going on from" in trial.runs.printed(trial.job)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _tail(text: str) -> str:
    lines = [line for line in text.splitlines() if not re.match(r"step[ -]\d", line)]
    return "\n".join(f"    {line}" for line in lines[-12:])


def main() -> int:
    """Every trial that the pattern matches, in a cluster of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="*", metavar="PATTERN")
    pattern = parser.parse_args().only
    if (why := slurm_cluster.missing()) is not None:
        print(why)
        return 2
    well = []
    for trial, names in ((try_cell, CELLS), (try_event, EVENTS)):
        for name in names:
            if not fnmatchcase(name, pattern):
                continue
            with tempfile.TemporaryDirectory(prefix="ds-llama-slurm-") as folder:
                Path(folder).chmod(0o755)
                with SlurmCluster(3, Path(folder) / "c", silent_s=10) as cluster:
                    runs = Runs(cluster, Path(folder))
                    runs.prepare()
                    well.append(trial(runs, name))
    return 0 if all(well) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
