"""DeepSpeed's compiled ops, built before the ranks start.

Left alone, DeepSpeed compiles an op at its first use, in every rank, a minute or more without a
word, and a build that was killed leaves a lock on which each later run waits for ever
(torch/utils/file_baton.py). Here one process builds, under a lock that its death releases, says
what it does and how long that takes, and clears the lock of a dead build.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ds_llama.errors import DsLlamaError, MachineError
from ds_llama.launcher import baton
from ds_llama.launcher.environment import find_compiler, rank_environment
from ds_llama.launcher.processes import end_session
from ds_llama.launcher.progress import Announcement

TIMEOUT_S = 1200.0


@dataclass(frozen=True)
class Op:
    """`lasts` is what cold builds took on two cores of x86-64 servers, busy ones included."""

    builder: str
    lasts: str = "1 to 2 minutes"


OPS = {
    "async_io": Op("AsyncIOBuilder", "2 to 4 minutes"),
    "cpu_adagrad": Op("CPUAdagradBuilder"),
    "cpu_adam": Op("CPUAdamBuilder"),
    "cpu_lion": Op("CPULionBuilder"),
    "fused_adam": Op("FusedAdamBuilder"),
    "pin_memory": Op("PinMemoryBuilder", "half a minute"),
    "shm_comm": Op("ShareMemCommBuilder"),
}
_ADAMS = ("adam", "adamw", "muon")  # Muon's other half is AdamW
_ON_HOST = {**dict.fromkeys(_ADAMS, "cpu_adam"), "adagrad": "cpu_adagrad", "lion": "cpu_lion"}
_INSTALL = (
    "install a C++ compiler and Python's headers (Debian, Ubuntu: apt install g++ python3-dev; "
    "Fedora, RHEL: dnf install gcc-c++ python3-devel)"
)


def needed(deepspeed: Mapping[str, Any], optimizer: str | None = None) -> list[str]:
    """Names of the ops that training under this DeepSpeed JSON compiles.

    optimizer: the type that the run asks for, None for the JSON's own or the default. Only AdamW on
    the host needs an op then: the others, and AdamW on the device, are torch's own.
    """
    zero = _section(deepspeed, "zero_optimization")
    optimizer_to = _section(zero, "offload_optimizer").get("device", "none")
    parameters_to = _section(zero, "offload_param").get("device", "none")
    section = _section(deepspeed, "optimizer")
    kind = str(section.get("type", "")).lower()
    names = []
    if optimizer not in (None, "AdamW"):
        pass
    elif optimizer_to in ("cpu", "nvme"):
        names.append(_ON_HOST.get(kind or "adamw", "cpu_adam"))
    elif kind in ("adam", "adamw", "muon") and not _section(section, "params").get(
        "torch_adam", False
    ):
        names.append("fused_adam")
    if "nvme" in (optimizer_to, parameters_to):
        names.append("async_io")
    return names


def build(names: Iterable[str], *, timeout_s: float = TIMEOUT_S) -> None:
    """Compile those of `names` that are not compiled yet; says so on stderr.

    Raises MachineError when there is no compiler, no libaio for async_io, when a build fails (with
    the compiler's first error), or when `timeout_s` is over, waiting for another build included.
    """
    wanted = [name for name in dict.fromkeys(names) if not is_built(name)]
    if not wanted:
        return
    _require_compiler()
    if "async_io" in wanted:
        _require_libaio()
    root = _root()
    root.mkdir(parents=True, exist_ok=True)
    with baton.held(root / "ds_llama.lock", timeout_s):
        for name in wanted:
            if not is_built(name):  # another process may have built it while we waited
                baton.clear_stale(root, name, timeout_s)
                _build_one(name, root, timeout_s)


def is_built(name: str) -> bool:
    """Whether this environment's build of the op is on disk."""
    try:
        stamp = json.loads(_stamp(name).read_text())
    except (OSError, ValueError):
        return False
    library = Path(stamp.get("library", ""))
    return library.is_file() and stamp == _stamped(library)


def _build_one(name: str, root: Path, timeout_s: float) -> None:
    op, log = OPS[name], root / f"ds_llama-{name}.log"
    command = [sys.executable, "-m", "ds_llama.launcher.build_op", name]
    text = f"compiling DeepSpeed's {name} for this machine (once; {op.lasts} on two cores)"
    with Announcement(text) as announcement, log.open("w") as output:
        process = subprocess.Popen(
            command,
            env=rank_environment(1),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = announcement.wait(process, timeout_s)
        finally:
            end_session(process.pid)
            process.wait()
        lines = log.read_text(errors="replace").strip().splitlines()
        if code is None:
            raise _failure(
                name, log, f"was not compiled within {timeout_s:g} s", "free the machine"
            )
        if code != 0 or not lines or not Path(lines[-1]).is_file():
            raise _failure(name, log, f"did not compile: {_first_error(lines)}", _INSTALL)
    _stamp(name).write_text(json.dumps(_stamped(Path(lines[-1]))))


def _failure(name: str, log: Path, what: str, remedy: str) -> MachineError:
    return MachineError(
        f"DeepSpeed's {name} {what}",
        where=str(log),
        remedy=f"{remedy}; what the compiler said is in the file named above",
    )


def _first_error(lines: list[str]) -> str:
    marks = ("error:", "fatal:", "Error:", "cannot find")
    wrong = [line.strip() for line in lines if any(mark in line for mark in marks)]
    return (wrong or lines[-1:] or ["no output"])[0][:200]


def _require_compiler() -> None:
    if find_compiler(os.environ) is None:
        raise MachineError(
            f"no C++ compiler: {os.environ.get('CXX', 'c++, g++ or clang++')} is not on PATH",
            where="CXX" if "CXX" in os.environ else "PATH",
            remedy=_INSTALL,
        )


def _require_libaio() -> None:
    """What DeepSpeed itself says as one warning among others, and then compiles in vain."""
    env = rank_environment(1)
    words = [*(env.get("CXX", "c++").split()), *env.get("CFLAGS", "").split()]
    program = "#include <libaio.h>\nint main() { return io_setup(0, nullptr); }\n"
    tried = subprocess.run(
        [*words, "-x", "c++", "-", "-o", os.devnull, *env.get("LDFLAGS", "").split(), "-laio"],
        input=program.encode(),
        capture_output=True,
        env=env,
        check=False,
    )
    if tried.returncode != 0:
        raise MachineError(
            "offload to NVMe needs libaio and its headers, which are not there",
            where="libaio.h",
            remedy="install them (Debian, Ubuntu: apt install libaio-dev; Fedora, RHEL: dnf "
            "install libaio-devel; elsewhere name their folders in CFLAGS and LDFLAGS), or offload "
            "to the host",
        )


def _root() -> Path:
    """Where torch.utils.cpp_extension builds."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    if given:
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache, "torch_extensions")


def _stamp(name: str) -> Path:
    return _root() / f"ds_llama-{name}-{_key()[:12]}.json"


def _stamped(library: Path) -> dict[str, str]:
    """What tells this build from another: environments that share the folder build over each other,
    and ninja's file, with the headers of the one that built last, says whose build it is."""
    rules = library.with_name("build.ninja")
    written = rules.read_bytes() if rules.is_file() else b""
    digest = hashlib.sha256(written).hexdigest()
    return {"key": _key(), "library": str(library), "rules": digest}


def _key() -> str:
    """What a build depends on: another value of any of these means another build."""
    env = rank_environment(1)
    facts = [
        sys.version,
        sys.prefix,
        metadata.version("torch"),
        metadata.version("deepspeed"),
        shutil.which("ninja", path=env["PATH"]),
        find_compiler(env),
        env.get("DS_ACCELERATOR"),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _section(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = parent.get(name)
    return found if isinstance(found, Mapping) else {}


def _main(words: list[str]) -> int:
    try:
        build(_asked(words))
    except DsLlamaError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _asked(words: list[str]) -> list[str]:
    """Ops by name, or those of a run, of whose command line only key=value matters here."""
    if not words or not words[0].endswith(".json"):
        return words
    from ds_llama.config import load_run

    overrides = [word for word in words[1:] if "=" in word and not word.startswith("-")]
    run = load_run(words[0], *overrides)
    return needed(run.deepspeed, run.optimizer.type if run.optimizer is not None else None)


if __name__ == "__main__":  # python -m ds_llama.launcher.ops cpu_adam, or RUN.json [key=value …]
    sys.exit(_main(sys.argv[1:]))
