"""What the launcher and its ranks find in their environment."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from ds_llama.launcher.cores import usable_cores

# Devices that torch may compute on: NVIDIA, AMD, and CUDA under Windows' Linux.
_DEVICE_FILES = ("nvidia[0-9]*", "kfd", "dxg")


def rank_environment(nproc: int, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """`base` (this process's environment) with what ranks need. What the user has set stays.

    - OMP_NUM_THREADS: the cores that this process may use, shared out among `nproc` ranks.
    - DS_ACCELERATOR=cpu where there is no device, so that DeepSpeed does not go looking for one.
    - TORCH_CPP_LOG_LEVEL, TOKENIZERS_PARALLELISM, PYTHONWARNINGS: no lines that say nothing to
      a user, such as torch's about names of collectives that DeepSpeed calls.
    - CXX: torch.utils.cpp_extension tries nothing but `c++` without it.
    - PATH: this Python's own folder first. torch.utils.cpp_extension compiles every op again when
      another ninja is found first.
    """
    env = dict(os.environ if base is None else base)
    defaults = {
        "OMP_NUM_THREADS": str(max(1, usable_cores() // max(1, nproc))),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    if not has_device(env):
        defaults["DS_ACCELERATOR"] = "cpu"
    for name, value in defaults.items():
        env.setdefault(name, value)
    quiet = "ignore::FutureWarning:torch.distributed.c10d_logger"
    env["PYTHONWARNINGS"] = ",".join(filter(None, [env.get("PYTHONWARNINGS"), quiet]))
    if "CXX" not in env and (compiler := find_compiler(env)):
        env["CXX"] = compiler
    own = os.path.dirname(sys.executable)
    paths = [path for path in env.get("PATH", os.defpath).split(os.pathsep) if path != own]
    env["PATH"] = os.pathsep.join([own, *paths])
    return env


def find_compiler(env: Mapping[str, str]) -> str | None:
    """Name of the C++ compiler that is there: $CXX, or the first of c++, g++ and clang++."""
    names = [env["CXX"].split()[0]] if env.get("CXX") else ["c++", "g++", "clang++"]
    path = env.get("PATH", os.defpath)
    return next((name for name in names if shutil.which(name, path=path)), None)


def has_device(env: Mapping[str, str] | None = None, dev: Path = Path("/dev")) -> bool:
    """Whether there is an accelerator to compute on; no torch is asked, since that takes seconds.

    DS_ACCELERATOR decides when it is set, and an empty CUDA_VISIBLE_DEVICES hides every device.
    """
    env = os.environ if env is None else env
    if "DS_ACCELERATOR" in env:
        return env["DS_ACCELERATOR"] != "cpu"
    if env.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return any(next(dev.glob(pattern), None) for pattern in _DEVICE_FILES)


def count_devices(dev: Path = Path("/dev")) -> int | None:
    """NVIDIA devices of this machine; None where device files do not tell."""
    return len(list(dev.glob("nvidia[0-9]*"))) or None
