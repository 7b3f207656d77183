"""`ds-llama`: find the command, run it, turn whatever happens into an exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ds_llama.cli import commands, outcome


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (`sys.argv[1:]` by default); 0, 1, 2 or 128 + signal."""
    arguments, debug = _take_debug(list(sys.argv[1:] if argv is None else argv))
    try:
        _join_step()
        with _terminable():
            code = _dispatch(_skip_local_rank(arguments))
            sys.stdout.flush()
    except BaseException as error:
        code = outcome.settle(error, debug=debug)
    if code == 0:
        _report_finished()
    return code


def entry() -> None:
    """The process's own entry point: dies with its launcher, and leaves with an exit code."""
    if "LOCAL_RANK" in os.environ:
        from ds_llama.launcher.orphan import die_with_parent

        die_with_parent()
    code = main()
    if code == outcome.PIPE_CLOSED:
        # Python would flush stdout once more at exit and complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(commands.help_text())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(_versions())
        return 0
    entry, rest = commands.split(arguments)
    command = commands.load(entry)
    words = commands.complete(entry, rest)
    result = command.main(args=words, prog_name=f"ds-llama {entry.name}", standalone_mode=False)
    return result if isinstance(result, int) else 0


def _join_step() -> None:
    """A task of an `srun` of several becomes the rank that it is."""
    if os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        from ds_llama.launcher.slurm import become_rank

        become_rank()


def _take_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """`--debug` may stand anywhere before a `--`."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [argument for argument in arguments[:end] if argument != "--debug"]
    return kept + arguments[end:], len(kept) < end


def _skip_local_rank(arguments: list[str]) -> list[str]:
    """Without the launcher's `--local_rank=N` before the command: LOCAL_RANK says it as well."""
    while arguments and arguments[0].partition("=")[0] in ("--local_rank", "--local-rank"):
        arguments = arguments[1:] if "=" in arguments[0] else arguments[2:]
    return arguments


def _versions() -> str:
    from importlib import metadata

    from ds_llama import __version__

    found = [f"ds_llama {__version__}"]
    for name in ("deepspeed", "torch"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} is not installed")
    return "\n".join([*found, f"Python {sys.version.split()[0]}"])


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM unwinds the stack while a command runs that does not wait for it itself.

    It ends a rank at once: Python's handlers do not run in a rank that waits for a dead one (to
    join the world, in a collective), and launch.py would wait 30 s for it, then kill it.
    """
    if threading.current_thread() is not threading.main_thread() or "RANK" in os.environ:
        yield
        return
    before = signal.signal(signal.SIGTERM, outcome.raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _report_finished() -> None:
    if "DS_LLAMA_LAUNCH" in os.environ and "RANK" in os.environ:
        from ds_llama.launcher.marks import report_finished

        report_finished()
