"""`python -m ds_llama.launcher.node …`: DeepSpeed's launch.py, which starts and watches ranks.

It takes launch.py's arguments and runs its code. Four things are different:

- launch.py computes nothing, and yet imports all of deepspeed and torch (two seconds, before the
  first rank starts) for a logger, one function over numactl, and the name of the variable that
  hides devices. On a CPU it gets these from here. Elsewhere DeepSpeed's accelerator is asked, as
  it is there that variables differ.
- It looks for the end of a rank once a second, and sleeps once more after the last one. Here it is
  woken (where the system can: not on macOS before Python 3.13).
- A SIGUSR1 ends it, and with it ranks that were to save. Here it does nothing.
- It keeps to itself which rank is which process, and which of them ended how. Here both are marks.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from ds_llama.launcher import marks

_ACCELERATOR = "deepspeed.accelerator"
_VISIBLE = "CUDA_VISIBLE_DEVICES"  # a CPU's too (deepspeed/accelerator/cpu_accelerator.py:363)


def main() -> None:
    """`deepspeed.launcher.launch.main()`, with its exit code."""
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        _spare_the_imports()
    # What a scheduler sends to every process. The ranks have it as it was: exec undoes handlers.
    signal.signal(signal.SIGUSR1, lambda signum, frame: None)
    launch: Any = importlib.import_module("deepspeed.launcher.launch")
    launch.subprocess = SimpleNamespace(Popen=_Rank)
    launch.time = SimpleNamespace(**{**vars(time), "sleep": _until_a_rank_ends})
    launch.main()


def _spare_the_imports() -> None:
    """deepspeed as packages whose `__init__` is not run, with what launch.py takes of them."""
    spec = importlib.util.find_spec("deepspeed")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    _module("deepspeed", folder)
    utils, accelerator = _module("deepspeed.utils", folder / "utils"), _module(_ACCELERATOR)
    logger = logging.getLogger("DeepSpeed")
    utils.logger = logger
    utils.set_log_level_from_string = lambda level: logger.setLevel(level.upper())
    utils.get_numactl_cmd = importlib.import_module("deepspeed.utils.numa").get_numactl_cmd
    accelerator.get_accelerator = _Cpu


def _module(name: str, *folders: Path) -> Any:
    module = sys.modules[name] = ModuleType(name)
    module.__path__ = list(map(str, folders))
    return module


class _Rank(subprocess.Popen[bytes]):
    """A rank, whose pid and exit code are left as marks for whoever supervises this launch."""

    def __init__(self, cmd: Sequence[str], *, env: Mapping[str, str], **settings: Any) -> None:
        super().__init__(cmd, env=env, **settings)
        self._rank = env["RANK"]
        marks.report_started(self._rank, self.pid)

    def poll(self) -> int | None:
        """As Popen's."""
        code = super().poll()
        if code is not None:
            marks.report_ended(self._rank, code)
        return code


class _Cpu:
    """What launch.py asks of `deepspeed.accelerator.cpu_accelerator.CPU_Accelerator`."""

    def visible_devices_envs(self) -> list[str]:
        return [_VISIBLE]

    def set_visible_devices_envs(self, env: dict[str, str], ids: list[int]) -> None:
        env[_VISIBLE] = ",".join(map(str, ids))


def _until_a_rank_ends(seconds: float) -> None:
    """In place of a sleep between two looks at the ranks; signals are handled meanwhile."""
    if not hasattr(os, "waitid"):
        time.sleep(seconds)
        return
    with suppress(ChildProcessError):  # all have ended, and have been looked at
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)


if __name__ == "__main__":
    main()
