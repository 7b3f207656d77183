"""From whatever ended a command to an exit code and, on stderr, three lines that say why."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType

from ds_llama.errors import DsLlamaError
from ds_llama.launcher.marks import LOST

PIPE_CLOSED = 128 + signal.SIGPIPE
_NO_HOST_MEMORY = "DefaultCPUAllocator: can't allocate memory"  # a bare RuntimeError


class Terminated(BaseException):
    """SIGTERM arrived where nothing else was waiting for it."""


def raise_terminated(signum: int, frame: FrameType | None) -> None:
    """Signal handler that unwinds the stack, so that files and locks are let go of."""
    raise Terminated


def settle(error: BaseException, *, debug: bool) -> int:
    """Print what `error` means, if it means anything, and give the exit code for it."""
    if isinstance(error, SystemExit):
        # click makes a SystemExit(1) of a closed pipe
        closed = isinstance(error.__context__, BrokenPipeError)
        return PIPE_CLOSED if closed else _exit_code(error)
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__cause__, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, Terminated):
        return 128 + signal.SIGTERM
    if isinstance(error, BrokenPipeError):
        return PIPE_CLOSED
    if debug:
        traceback.print_exception(error)
    text, code = describe(error)
    if not _is_echo(error):
        _say(text)
    return code


def describe(error: BaseException) -> tuple[str, int]:
    """The lines to print for `error`, and the exit code."""
    if isinstance(error, DsLlamaError):
        return str(error), error.exit_code
    if _is_usage_error(error):
        return _usage(error), 2
    kind, where = type(error).__name__, _innermost(error)
    what = f"{kind}: {error}".rstrip(": ")
    if isinstance(error, OSError) and error.strerror:
        place = error.filename or where
        remedy = "mend what the system complains about; --debug prints a traceback"
        return _lines(error.strerror, str(place), remedy), 1
    if "RANK" in os.environ:
        where = f"rank {os.environ['RANK']}, {where}"
        if any(word in what for word in LOST):
            remedy = "see which rank ended first, and why: its launcher names it with its exit code"
            return _lines(f"another rank has gone away ({what})", where, remedy), 1
    remedy = "run again with --debug for the traceback, and report it: this is not your mistake"
    if kind in ("OutOfMemoryError", "MemoryError") or _NO_HOST_MEMORY in what:
        remedy = "take a smaller micro batch, a higher ZeRO stage or an offload"
        return _lines(f"out of memory ({what})", where, remedy), 1
    return _lines(f"ds-llama failed in a way it does not know ({what})", where, remedy), 1


def _exit_code(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return int(error.code or 0)
    _say(str(error.code))
    return 1


def _is_usage_error(error: BaseException) -> bool:
    # Some releases of typer stand on click, some carry their own copy of it.
    return any(cls.__name__ == "ClickException" for cls in type(error).__mro__)


def _usage(error: BaseException) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "ds-llama"
    what = error.format_message() if hasattr(error, "format_message") else str(error)
    return _lines(what.rstrip(".") or "the call is not complete", path, f"see `{path} --help`")


def _lines(what: str, where: str, remedy: str) -> str:
    what = " ".join(what.split())
    return f"error: {what}\nwhere: {where}\nremedy: {remedy}"


def _innermost(error: BaseException) -> str:
    """The innermost line of this package that `error` passed through."""
    package = Path(__file__).parent.parent
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(package)]
    if not ours:
        return "unknown"
    last = ours[-1]
    name = Path(last.filename).relative_to(package.parent)
    return f"{name}:{last.lineno} in {last.name}"


def _is_echo(error: BaseException) -> bool:
    """Whether a collective broke off since another rank had ended, which has said why."""
    folder = os.environ.get("DS_LLAMA_LAUNCH")
    if not folder or "RANK" not in os.environ or not any(word in str(error) for word in LOST):
        return False
    return any(Path(folder).glob("said-*"))


def _say(text: str) -> None:
    """Print once, although every rank of a run may have come to the same conclusion."""
    folder = os.environ.get("DS_LLAMA_LAUNCH")
    if folder and "RANK" in os.environ:
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        try:
            os.close(os.open(Path(folder, f"said-{name}"), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return
        except OSError:
            pass  # the folder is gone with its launcher: say it all the same
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)
