"""Python processes that are forked from this one, which has imported torch and DeepSpeed already.

`python -m MODULE` takes 8 s before its first line otherwise, three times over for one launch. Each
is a process of its own with the parent, session, environment, arguments and descriptors that it was
given; only the imports are shared.
"""

from __future__ import annotations

import importlib
import os
import random
import runpy
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from typing import Any, NoReturn

IMPORTS = (
    *("torch", "torch._dynamo", "torch._inductor.compile_fx", "torch.utils.cpp_extension"),
    *("deepspeed", "deepspeed.ops.adam", "deepspeed.runtime.zero.muon.muon_optimizer"),
    *("ds_llama.cli.main", "ds_llama.cli.train", "ds_llama.trainer.rank", "ds_llama.launcher.run"),
)


def install() -> None:
    """Import what every launch imports; from then on this process and its children fork."""
    for name in IMPORTS:
        importlib.import_module(name)
    subprocess.Popen = _Forked  # type: ignore[misc]


class _Forked(subprocess.Popen):  # type: ignore[type-arg]
    """Forks for `python -m MODULE …`; starts anything else as ever."""

    def _execute_child(self, args: Any, *given: Any) -> None:
        module = _module(args)
        if module is None:
            super()._execute_child(args, *given)  # type: ignore[misc]
            return
        cwd, env, pipes = given[4], given[5], given[9:15]
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(module, pipes[0], pipes[3], pipes[5], cwd, env, new_session=bool(given[20]))
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def _module(args: Any) -> list[str] | None:
    """The module and its arguments, when that is what is to be run."""
    if isinstance(args, str) or args[0] != sys.executable or "-m" not in args[1:3]:
        return None
    return [str(word) for word in args[list(args).index("-m") + 1 :]]


def _become(
    words: list[str], stdin: int, stdout: int, stderr: int, cwd: Any, env: Any, *, new_session: bool
) -> NoReturn:
    code = 1
    try:
        if new_session:
            os.setsid()
        for descriptor, number in ((stdin, 0), (stdout, 1), (stderr, 2)):
            if descriptor != -1:
                os.dup2(descriptor, number)
        signal.set_wakeup_fd(-1)
        for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            if callable(signal.getsignal(signum)):
                signal.signal(signum, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if cwd is not None:
            os.chdir(cwd)
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        random.seed()
        sys.argv = words
        code = _run(words[0])
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _run(module: str) -> int:
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        print(error.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
