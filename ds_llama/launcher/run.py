"""Start DeepSpeed's launcher, pass signals on, and leave no process behind.

On this machine (on several hosts: `several`):

    ds-llama train --nproc 2            supervises: signals, exit code, what is left over
      └ deepspeed.launcher.launch       environment of each rank; ends all when one fails
          ├ ds_llama train  rank 0
          └ ds_llama train  rank 1

All but the top are one session of their own, so a Ctrl-C at the terminal reaches the top one only,
and what is left at the end is ended by that session.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ds_llama.errors import CallError, RunError
from ds_llama.launcher import addresses, command, marks, ops, selection, several, shown, slurm
from ds_llama.launcher import hostfile as hostfiles
from ds_llama.launcher.environment import rank_environment
from ds_llama.launcher.orphan import SUPERVISOR
from ds_llama.launcher.processes import kill_session
from ds_llama.launcher.session import Session
from ds_llama.launcher.status import exit_code
from ds_llama.launcher.supervisor import Outcome

if TYPE_CHECKING:
    from ds_llama.config.run import Run

# DeepSpeed's launch.py gives a rank 30 s between asking it to end and killing it.
PATIENCE_S = 40.0
TIMED_OUT = 124


def launch(
    arguments: Sequence[str],
    run: Run | None = None,
    *,
    nproc: int | None = None,
    hostfile: Path | str | None = None,
    module: str = "ds_llama",
    log: Path | None = None,
    timeout_s: float | None = None,
    include: str | None = None,
    exclude: str | None = None,
    launcher: str = "ssh",
    nodes: int | None = None,
    restarts: int = 0,
    again: Sequence[str] | None = None,
    check: bool = False,
    wait_s: float = 0.0,
    dry_run: bool = False,
) -> int:
    """Run `python -m module arguments…` on every rank; the exit code of the run.

    log: a file for what launcher and ranks print. timeout_s: after it everything is killed, and
    the code is 124, as timeout(1) has it.

    0 only when every rank said that it finished; 128 + n when signal n ended the run or a rank;
    else the code of the first rank that failed. SIGINT, SIGTERM and SIGHUP have the ranks save, for
    which they have 40 s, and a second one ends everything at once; SIGUSR1 gives them all the time
    that it takes. The ops that `run` needs are compiled first. After a failure it is started anew,
    `restarts` times at most, with `again` for arguments.

    With `hostfile` they run on its hosts (on `nodes` of those that `include` and `exclude` leave),
    each under an agent there that `launcher` starts (`several.launch_on`, which has `check` and
    `wait_s`); `log` and `timeout_s` are for one machine alone, and what ranks print is
    kept in a file for each, on its host. With `dry_run` the commands are printed, and nothing is
    started.

    Raises CallError for a call that cannot work, MachineError when an op does not compile, and
    RunError when all went well as far as exit codes say and yet a rank did not finish.
    """
    if (nproc is None) == (hostfile is None):
        raise CallError(
            "one of --nproc and --hostfile says where the ranks run",
            where="command line",
            remedy="give --nproc N for this machine, or --hostfile FILE for several",
        )
    slurm.refuse_in_step()
    if launcher not in several.LAUNCHERS:
        raise CallError(
            f"there is no launcher {launcher!r}",
            where="--launcher",
            remedy=f"give one of {', '.join(several.LAUNCHERS)}",
        )
    only: dict[str, object] = {
        "include": include,
        "exclude": exclude,
        "nodes": nodes,
        "wait-for-hosts": wait_s or None,
    }
    given = [f"--{name}" for name, value in only.items() if value is not None]
    if hostfile is None and given:
        raise CallError(
            f"{given[0]} is for the hosts of a hostfile",
            where="command line",
            remedy="give --hostfile FILE, which may name this machine",
        )
    if hostfile is not None:
        hosts = selection.select(hostfiles.read(hostfile), include, exclude)
        if not dry_run:
            # A name that is nowhere may have a spare.
            addresses.require_distinct(hosts, spares=nodes is not None and nodes < len(hosts))
        return several.launch_on(
            *(hosts, arguments, run),
            module=module,
            launcher=launcher,
            nodes=nodes,
            restarts=restarts,
            again=again,
            check=check,
            wait_s=wait_s,
            dry_run=dry_run,
        )
    assert nproc is not None
    if dry_run:
        argv, env = _local(arguments, nproc, module)
        ours = {name: value for name, value in env.items() if os.environ.get(name) != value}
        print(shown.line(argv, ours))
        return 0
    if run is not None:
        kind = run.optimizer.type if run.optimizer is not None else None
        ops.build(ops.needed(run.deepspeed, kind))

    def attempt(words: Sequence[str]) -> Outcome:
        argv, env = _local(words, nproc, module)
        with tempfile.TemporaryDirectory(prefix="ds-llama-") as folder:
            env.update({marks.FOLDER: folder, SUPERVISOR: str(os.getpid())})
            outcome = _run_once(argv, env, log, timeout_s)
            if outcome.code == 0:
                _require_finished(Path(folder), nproc)
        return outcome

    return several.until_done(attempt, arguments, again, restarts)


def _local(arguments: Sequence[str], nproc: int, module: str) -> tuple[list[str], dict[str, str]]:
    """argv and environment of launch.py, with a port of this attempt's own."""
    env = rank_environment(nproc)
    argv = command.local(arguments, nproc, env, module)
    if Path("/sys/class/net/lo").exists():
        # gloo would look up this host's name, which containers and laptops often cannot.
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return argv, env


def _require_finished(folder: Path, world_size: int) -> None:
    missing = marks.unfinished(folder, world_size)
    if missing:
        raise RunError(
            f"{len(missing)} of {world_size} ranks did not finish",
            where="rank " + ", ".join(map(str, missing)),
            remedy="see above for what ended them; a launcher that was killed ends its ranks",
        )


def _run_once(
    argv: Sequence[str], env: dict[str, str], log: Path | None, timeout_s: float | None
) -> Outcome:
    """launch.py and its ranks, to the end of all of them."""
    folder = Path(env[marks.FOLDER])
    session = Session(argv, env, partial(_ask, folder), PATIENCE_S)
    with ExitStack() as stack:
        output = None if log is None else stack.enter_context(log.open("wb"))
        try:
            code = session.run(output=output, timeout_s=timeout_s)
        except subprocess.TimeoutExpired:
            code = TIMED_OUT
    signum = session.signum
    # After SIGUSR1 it is for the ranks to say what they have done.
    if signum is not None and (signum != signal.SIGUSR1 or not marks.started(folder)):
        return Outcome(128 + signum, signum=signum)
    if code < 0:
        print(f"error: signal {-code} ended the launcher of the ranks", file=sys.stderr)
    return Outcome(exit_code(code), signum=signum)


def _ask(folder: Path, child: subprocess.Popen[bytes], signum: int) -> None:
    """Have the ranks save and end: by launch.py, which passes SIGTERM on. SIGUSR1 they have from
    here; where there is no rank yet, there is nothing to save."""
    if signum != signal.SIGUSR1:
        child.send_signal(signal.SIGTERM)
        return
    ended, started = marks.ended(folder), marks.started(folder)
    for rank, pid in started.items():
        if rank not in ended:
            with suppress(ProcessLookupError):
                os.kill(pid, signum)
    if not started:
        kill_session(child.pid)
