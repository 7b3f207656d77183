"""What ranks on other hosts get of this environment: by rule, and what `.deepspeed_env` says.

DeepSpeed (deepspeed/launcher/runner.py:587) exports variables by prefix and every line of
`.deepspeed_env` in the home and in the working folder. It strips what is around a value and has a
shell read it, so that `$(…)` runs on every host; a comment makes the export a mistake, with which
every host runs nothing and exits 0. Here a value is the text that stands there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ds_llama.errors import CallError, ConfigError
from ds_llama.launcher import textfile

FILE = ".deepspeed_env"

# DeepSpeed's (runner.py:36, and `export_envs` of its accelerators), then what has to be the same on
# every rank as well.
_PREFIXES = (
    *("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL"),
    *("DS_", "DEEPSPEED_", "GLOO_", "HF_", "OMP_", "PYTORCH_", "TOKENIZERS_", "TORCH_", "WANDB_"),
)
_NAMES = ("CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING")
# Of this machine alone: what names files here, and who supervises whom.
_KEPT_HERE = ("DS_ENV_FILE", "DS_LLAMA_LAUNCH", "DS_LLAMA_SUPERVISOR", "PYTHONHOME")
# runner.py:43: there each node sets these itself.
_KEPT_ON_AISC = ("NCCL_IB_HCA", "UCX_NET_DEVICES")
# By words of the name: WANDB_API_KEY, HF_TOKEN, MLFLOW_TRACKING_PASSWORD; not TOKENIZERS_….
_SECRET = re.compile(
    r"(?:^|_)(?:[A-Z]*KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|AUTH|BEARER)S?(?:_|$)"
)
_SET_BY_THE_LAUNCHER = {
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "CROSS_RANK"),
    *("WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "CROSS_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "DS_LLAMA_LAUNCH", "DS_LLAMA_SUPERVISOR"),
}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_FOR_A_SHELL = re.compile(r"\$[A-Za-z_{(]|`", re.ASCII)
_FORM = "write NAME=value, for example NCCL_SOCKET_IFNAME=eth0"


def exported(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of `environ` that ranks on other hosts get too.

    Never one whose name says that it holds a secret, WANDB_API_KEY for one: what is exported may
    stand on a command line, which every user of a host can read. `wandb login` on the first host,
    whose rank 0 is the only one to log in, or a line in `.deepspeed_env`, does without. And
    OMP_NUM_THREADS only where it is in `environ`: hosts differ in their cores.
    """
    kept = {*_KEPT_HERE, *(_KEPT_ON_AISC if "AISC_JOB_NAME" in environ else ())}
    return {
        name: value
        for name, value in environ.items()
        if name.startswith(_PREFIXES) or name in _NAMES
        if name not in kept and _NAME.fullmatch(name) and not is_secret(name)
    }


def is_secret(name: str) -> bool:
    """Whether a variable of this name may hold a secret."""
    return _SECRET.search(name.upper()) is not None


def environment(
    environ: Mapping[str, str], cwd: Path | None = None, home: Path | None = None
) -> dict[str, str]:
    """What is exported, and over it what the environment files say. Raises as `read`."""
    return {**exported(environ), **read(environ, cwd, home)}


def read(
    environ: Mapping[str, str], cwd: Path | None = None, home: Path | None = None
) -> dict[str, str]:
    """What `.deepspeed_env` says, in the home folder and then in the working folder, which wins.

    DS_ENV_FILE names another file, relative to both folders (or absolute), as in DeepSpeed; one
    that is nowhere is a CallError. Raises ConfigErrors with every line that is wrong.
    """
    name = environ.get("DS_ENV_FILE", FILE)
    found: dict[str, str] = {}
    paths = dict.fromkeys(
        (folder / name).resolve() for folder in (home or Path.home(), cwd or Path.cwd())
    )
    there = [path for path in paths if path.exists()]
    if not there and "DS_ENV_FILE" in environ:
        raise CallError(
            f"no file {name!r} in the home and in the working folder",
            where="DS_ENV_FILE",
            remedy="name a file that is there, or unset DS_ENV_FILE",
        )
    for path in there:
        text = textfile.read_text(path, "environment file", "mend it, or move it away")
        found |= parse(text, str(path))
    return found


def parse(text: str, path: str) -> dict[str, str]:
    """Variables of an environment file's text: NAME=value lines, `#` comment lines, blank lines.

    A value is taken as it stands, without the blanks at its end. What a shell would make something
    else of (`$NAME`, `$(…)`, backticks, quotes around it all) is an error and not a guess.
    """
    found: dict[str, str] = {}
    errors: list[ConfigError] = []
    for line, where, wrong in textfile.lines(text, path):
        if not line.strip(" \t") or line.lstrip(" \t").startswith("#"):
            errors += [wrong] if wrong else []
            continue
        try:
            if wrong:
                raise wrong
            name, value = _parse_line(line, where)
            if name in found:
                raise _error(f"{name} is set twice", f"{where}:1", "keep one of the lines")
        except ConfigError as error:
            errors.append(error)
            continue
        found[name] = value
    if errors:
        raise textfile.capped(errors, path)
    return found


def _parse_line(line: str, where: str) -> tuple[str, str]:
    name, equals, value = line.partition("=")
    if name.split()[:1] in (["export"], ["set"], ["declare"]):
        word = name.split()[0]
        raise _error(f"{word!r} is for a shell, which this is not", f"{where}:1", _FORM)
    if not equals:
        raise _error(f"{line.strip()!r} has no =", f"{where}:{len(line) + 1}", _FORM)
    if not _NAME.fullmatch(name):
        raise _error(f"{name!r} is not a variable's name", f"{where}:1", _FORM)
    column = len(name) + 2
    if name in _SET_BY_THE_LAUNCHER:
        raise _error(f"{name} is set by the launcher, for each rank", f"{where}:1", "leave it out")
    if name == "CUDA_VISIBLE_DEVICES":
        remedy = "choose devices by --include or --exclude"
        raise _error(f"{name} is set by the launcher, for each host", f"{where}:1", remedy)
    if value[:1] in (" ", "\t"):
        raise _error("a blank after =", f"{where}:{column}", "write NAME=value without blanks")
    value = value.rstrip(" \t")
    _check_value(value, where, column)
    return name, value


def _check_value(value: str, where: str, column: int) -> None:
    found = _FOR_A_SHELL.search(value)
    if found:
        remedy = "write the value out"
        what = f"{found.group()!r} is for a shell, and no shell reads this file"
        raise _error(what, f"{where}:{column + found.start()}", remedy)
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        what = "the quotes would be part of the value"
        raise _error(what, f"{where}:{column}", "leave them out: a value may hold blanks")
    comment = re.search(r"[ \t]#", value)
    if comment:
        what = "a comment would be part of the value"
        raise _error(what, f"{where}:{column + comment.start() + 1}", "give it a line of its own")


def _error(what: str, where: str, remedy: str) -> ConfigError:
    return ConfigError(what, where=where, remedy=remedy)
