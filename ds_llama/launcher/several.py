"""A run over several hosts: attempt after attempt, spares in the place of hosts that are lost."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ds_llama.errors import CallError, RunError
from ds_llama.launcher import ops, passthrough, shown
from ds_llama.launcher.hostfile import Host
from ds_llama.launcher.job import Job, exported
from ds_llama.launcher.supervisor import Outcome, Supervisor
from ds_llama.units import format_duration

if TYPE_CHECKING:
    from ds_llama.config.run import Run

LAUNCHERS = ("ssh", "pdsh", "torchrun", *passthrough.LAUNCHERS)
_PAUSE_S = 3.0
"""Before another attempt: what holds ports, locks and devices has gone by then."""
_ASK_AGAIN_S, _ASK_AGAIN_MOST_S = 5.0, 60.0
"""Before hosts that cannot be used are asked once more; twice as long each time."""


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
    wait_s: float = 0.0,
    dry_run: bool = False,
) -> int:
    """The exit code of `python -m module arguments…` on the ranks of `nodes` of the hosts.

    After a failure it is started anew, `restarts` times at most, with `again` for arguments; a host
    that was lost is replaced by one that is not in use. A signal from outside and a call that is
    wrong (exit code 2) end it at once. Raises CallError when there are fewer hosts than `nodes`.

    check: ask the hosts before each attempt (`launcher.check`). What is wrong is printed, and a
    spare takes the place of a host that cannot be used; exit code 1 when there is none, nor comes
    back within `wait_s`.
    """
    if dry_run:
        job = job_of(choose(hosts, nodes), arguments, run, module, launcher)
        print("\n".join(shown.lines(job, launcher)))
        return 0
    down: set[str] = set()

    def attempt(words: Sequence[str]) -> Outcome | None:
        chosen = choose(hosts, nodes, down)
        if check:
            chosen = _wait_for_fit(hosts, nodes, down, run, wait_s)
        if not chosen:
            return None
        outcome = _attempt(job_of(chosen, words, run, module, launcher), launcher)
        down.update(outcome.lost)
        return outcome

    def where() -> str:
        return f" on {_names(choose(hosts, nodes, down))}"

    return until_done(attempt, arguments, again, restarts, where)


def until_done(
    attempt: Callable[[Sequence[str]], Outcome | None],
    arguments: Sequence[str],
    again: Sequence[str] | None,
    restarts: int,
    where: Callable[[], str] = str,
) -> int:
    """Attempt with `arguments`, after failures with `again`, `restarts` times at most; the code.

    A signal from outside and a call that is wrong end it at once, and so does an attempt that could
    not be made (None), which has said why. Raises RunError when the last one does.
    """
    left, words = restarts, arguments
    while True:
        try:
            outcome = attempt(words)
        except RunError as error:
            if not left:
                raise
            print(error, file=sys.stderr)
            outcome = Outcome(error.exit_code)
        if outcome is None:
            return 1
        is_final = outcome.code in (0, CallError.exit_code) or outcome.signum is not None
        if is_final or not left:
            return outcome.code
        left, words = left - 1, words if again is None else again
        print(f"starting again{where()} ({left} left)", flush=True)
        time.sleep(_PAUSE_S)


def _wait_for_fit(
    hosts: Sequence[Host],
    nodes: int | None,
    down: Collection[str],
    run: Run | None,
    wait_s: float,
) -> list[Host]:
    """As `_fit`, asked again and again for `wait_s`: a host that is lost may come back."""
    deadline, pause_s = time.monotonic() + wait_s, _ASK_AGAIN_S
    while not (chosen := _fit(hosts, nodes, down, run)):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            why = "there is no spare for what cannot be used"
            told = f"waited {format_duration(wait_s)}" if wait_s else "--wait-for-hosts 10m waits"
            print(f"nothing is started: {why} ({told})", file=sys.stderr, flush=True)
            break
        print(f"waiting for hosts, {format_duration(left_s)} more", file=sys.stderr, flush=True)
        time.sleep(min(pause_s, left_s))
        pause_s = min(2 * pause_s, _ASK_AGAIN_MOST_S)
    return chosen


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
