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
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING

from ds_llama.errors import CallError, RunError
from ds_llama.launcher import addresses, command, marks, ops, selection, several, shown, slurm
from ds_llama.launcher import hostfile as hostfiles
from ds_llama.launcher.environment import rank_environment
from ds_llama.launcher.orphan import SUPERVISOR
from ds_llama.launcher.processes import end_session, handling, kill_session
from ds_llama.launcher.status import exit_code

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
    dry_run: bool = False,
) -> int:
    """Run `python -m module arguments…` on every rank; the exit code of the run.

    log: a file for what launcher and ranks print. timeout_s: after it everything is killed, and
    the code is 124, as timeout(1) has it.

    0 only when every rank said that it finished; 128 + n when signal n ended the run or a rank;
    else the code of the first rank that failed. SIGINT and SIGTERM are passed on once, the ranks
    have 40 s to save, and a second one ends everything at once. The ops that `run` needs are
    compiled first.

    With `hostfile` they run on its hosts (on `nodes` of those that `include` and `exclude` leave),
    each under an agent there that `launcher` starts (`several.launch_on`, which has `restarts`,
    `again` and `check`); `log` and `timeout_s` are for one machine alone, and what ranks print is
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
    only = {"include": include, "exclude": exclude, "nodes": nodes, "restarts": restarts or None}
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
            dry_run=dry_run,
        )
    assert nproc is not None
    env = rank_environment(nproc)
    argv = command.local(arguments, nproc, env, module)
    if Path("/sys/class/net/lo").exists():
        # gloo would look up this host's name, which containers and laptops often cannot.
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if dry_run:
        ours = {name: value for name, value in env.items() if os.environ.get(name) != value}
        print(shown.line(argv, ours))
        return 0
    if run is not None:
        kind = run.optimizer.type if run.optimizer is not None else None
        ops.build(ops.needed(run.deepspeed, kind))
    with tempfile.TemporaryDirectory(prefix="ds-llama-") as folder:
        env.update({marks.FOLDER: folder, SUPERVISOR: str(os.getpid())})
        code = _Launch(argv, env, log=log, timeout_s=timeout_s).run()
        if code == 0:
            _require_finished(Path(folder), nproc)
    return code


def _require_finished(folder: Path, world_size: int) -> None:
    missing = marks.unfinished(folder, world_size)
    if missing:
        raise RunError(
            f"{len(missing)} of {world_size} ranks did not finish",
            where="rank " + ", ".join(map(str, missing)),
            remedy="see above for what ended them; a launcher that was killed ends its ranks",
        )


class _Launch:
    """One child and its session."""

    def __init__(
        self,
        argv: Sequence[str],
        env: dict[str, str],
        *,
        log: Path | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self._argv, self._env = argv, env
        self._log, self._timeout_s = log, timeout_s
        self._signum: int | None = None
        self._timer = threading.Timer(PATIENCE_S, self._kill)
        self._timer.daemon = True

    def run(self) -> int:
        """Start, wait, clean up; the exit code as a shell would give it."""
        sys.stdout.flush()
        with handling((signal.SIGINT, signal.SIGTERM), self._receive), self._output() as output:
            self._child = subprocess.Popen(
                self._argv,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                if self._signum is not None:
                    self._pass_on()
                code = self._child.wait(self._timeout_s)
            except subprocess.TimeoutExpired:
                code = TIMED_OUT
            finally:
                self._timer.cancel()
                end_session(self._child.pid)
                self._child.wait()
        if self._signum is not None:
            return 128 + self._signum
        if code < 0:
            print(f"error: signal {-code} ended the launcher of the ranks", file=sys.stderr)
        return exit_code(code)

    @contextmanager
    def _output(self) -> Iterator[IO[bytes] | None]:
        """Where the child's words go; None is where ours go."""
        if self._log is None:
            yield None
            return
        with self._log.open("wb") as file:
            yield file

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self._signum is not None:
            self._kill()
            return
        self._signum = signum
        self._timer.start()
        if hasattr(self, "_child"):
            self._pass_on()

    def _pass_on(self) -> None:
        """Have the ranks asked to end, by launch.py."""
        with suppress(OSError):
            self._child.send_signal(signal.SIGTERM)

    def _kill(self) -> None:
        kill_session(self._child.pid)
