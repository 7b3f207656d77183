"""A run over several hosts: attempt after attempt, spares in the place of hosts that are lost."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ds_llama.errors import CallError
from ds_llama.launcher import ops, passthrough, shown
from ds_llama.launcher.hostfile import Host
from ds_llama.launcher.job import Job, exported
from ds_llama.launcher.supervisor import Outcome, Supervisor

if TYPE_CHECKING:
    from ds_llama.config.run import Run

LAUNCHERS = ("ssh", "pdsh", "torchrun", *passthrough.LAUNCHERS)
_PAUSE_S = 3.0
"""Before another attempt: what holds ports, locks and devices has gone by then."""


def launch_on(
    hosts: Sequence[Host],
    arguments: Sequence[str],
    run: Run | None,
    *,
    module: str,
    launcher: str,
    nodes: int | None = None,
    restarts: int = 0,
    again: Sequence[str] | None = None,
    check: bool = False,
    dry_run: bool = False,
) -> int:
    """The exit code of `python -m module arguments…` on the ranks of `nodes` of the hosts.

    After a failure it is started anew, `restarts` times at most, with `again` for arguments; a host
    that was lost is replaced by one that is not in use. A signal from outside and a call that is
    wrong (exit code 2) end it at once. Raises CallError when there are fewer hosts than `nodes`.

    check: ask the hosts before each attempt (`launcher.check`). What is wrong is printed, and a
    spare takes the place of a host that cannot be used; exit code 1 when there is none.
    """
    if dry_run:
        job = job_of(choose(hosts, nodes), arguments, run, module, launcher)
        print("\n".join(shown.lines(job, launcher)))
        return 0
    down: set[str] = set()
    for attempt in range(restarts + 1):
        chosen = _fit(hosts, nodes, down, run) if check else choose(hosts, nodes, down)
        if not chosen:
            return 1
        words = arguments if attempt == 0 or again is None else again
        outcome = _attempt(job_of(chosen, words, run, module, launcher), launcher)
        if outcome.code in (0, CallError.exit_code) or outcome.signum is not None:
            break
        down.update(outcome.lost)
        if attempt < restarts:
            left = restarts - attempt - 1
            print(f"starting again on {_names(choose(hosts, nodes, down))} ({left} left)")
            sys.stdout.flush()
            time.sleep(_PAUSE_S)
    return outcome.code


def _fit(
    hosts: Sequence[Host], nodes: int | None, down: Collection[str], run: Run | None
) -> list[Host]:
    """The hosts to take, asked and found well; none when too few are."""
    from ds_llama.launcher.check import admit  # with the planner: not for one machine

    bad: set[str] = set()
    while True:
        chosen = choose(hosts, nodes, {*down, *bad})
        if bad.intersection(host.name for host in chosen):
            return []
        found = admit.unfit(chosen, run)
        if not found:
            return chosen
        bad |= found


def _attempt(job: Job, launcher: str) -> Outcome:
    if launcher in passthrough.LAUNCHERS:
        return passthrough.launch(job, launcher)
    return Supervisor(job, "pdsh" if launcher == "pdsh" else "ssh").run()


def choose(hosts: Sequence[Host], nodes: int | None, down: Collection[str] = ()) -> list[Host]:
    """The first `nodes` hosts in the file's order, those of `down` only where there is no other."""
    wanted = len(hosts) if nodes is None else nodes
    if wanted > len(hosts):
        raise CallError(
            f"{wanted} hosts are asked for, and there are {len(hosts)}",
            where="--nodes",
            remedy=f"give --nodes {len(hosts)}, or add hosts to the hostfile",
        )
    liked = sorted(hosts, key=lambda host: host.name in down)[:wanted]
    return [host for host in hosts if host in liked]


def job_of(
    hosts: Sequence[Host],
    arguments: Sequence[str],
    run: Run | None,
    module: str,
    launcher: str = "ssh",
) -> Job:
    """The launch as data. Logs go to a folder of this attempt's own in the run's, on each host."""
    output = os.path.abspath(run.output) if run is not None else None
    attempt = time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}"
    kind = run.optimizer.type if run is not None and run.optimizer is not None else None
    return Job(
        tuple(hosts),
        module,
        tuple(arguments),
        logs=str(Path(output or os.getcwd(), "logs", attempt)),
        output=output,
        ops=tuple(ops.needed(run.deepspeed, kind)) if run is not None else (),
        env=exported(os.environ),
        starter="torchrun" if launcher == "torchrun" else "deepspeed",
    )


def _names(hosts: Sequence[Host]) -> str:
    return ", ".join(host.name for host in hosts)
