"""Make .venv and install ds_llama into it, or say in one error what this machine lacks.

The standard library alone, and no syntax younger than Python 3.6: this file must be able to tell
an old Python that it is old. Run by quickstart.sh and test.sh; a second run does nothing.

A torch that is already there is never replaced: neither one in .venv, nor one that the calling
Python has (.venv then sees that Python's packages). pip reads its usual PIP_* variables, so on a
machine without a GPU PIP_EXTRA_INDEX_URL may name an index of CPU wheels of torch, which saves
several GB.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from importlib import util
from pathlib import Path

OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 6)
# 1.5 GB is what .venv takes with torch's CPU build; the rest is pip's downloads and compiled ops.
NEED_GB = 3.0

ROOT = Path(__file__).resolve().parent.parent
PROBE = "from importlib import metadata; print(metadata.version('torch'))"


class Lacking(Exception):
    """What is missing, where that was looked for, and what to do."""

    def __init__(self, what, where, remedy):
        super().__init__(f"error: {what}\nwhere: {where}\nremedy: {remedy}")


def check_python(version=sys.version_info[:3]):
    if tuple(version[:2]) < OLDEST_PYTHON:
        raise Lacking(
            f"Python {'.'.join(map(str, version))} is too old: ds_llama needs 3.10 or newer",
            sys.executable,
            "install one (Debian, Ubuntu: apt install python3.11 python3.11-venv python3.11-dev; "
            "Fedora, RHEL: dnf install python3.11-devel; macOS: brew install python@3.11) and "
            "name it: PYTHON=python3.11 bash launch/quickstart.sh",
        )


def check_venv(venv):
    if not venv.exists() and (
        util.find_spec("venv") is None or util.find_spec("ensurepip") is None
    ):
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        raise Lacking(
            "this Python cannot make virtual environments: venv or ensurepip is missing",
            sys.executable,
            f"Debian, Ubuntu: apt install {package} (or python3-venv)",
        )


def check_compiler():
    names = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    compiler = next((found for found in map(shutil.which, names) if found), None)
    install = "Debian, Ubuntu: apt install g++; Fedora, RHEL: dnf install gcc-c++; "
    install += "macOS: xcode-select --install"
    if compiler is None:
        raise Lacking(
            f"no C++ compiler: {', '.join(names)} not found. DeepSpeed compiles its ops with one",
            "CXX" if os.environ.get("CXX") else "PATH",
            install,
        )
    return compiler, install


def check_headers(include=None):
    include = include or sysconfig.get_paths()["include"]
    if not Path(include, "Python.h").is_file():
        raise Lacking(
            "Python's headers are missing: DeepSpeed's ops are compiled against Python.h",
            include,
            "Debian, Ubuntu: apt install python3-dev; Fedora, RHEL: dnf install python3-devel; "
            "macOS: brew install python",
        )
    return include


def check_compiles():
    compiler, install = check_compiler()
    include = check_headers()
    source = "#include <Python.h>\n#include <vector>\nstd::vector<int> v;\n"
    tried = subprocess.run(
        [compiler, "-x", "c++", "-std=c++17", "-fsyntax-only", "-I", include, "-"],
        input=source.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if tried.returncode != 0:
        said = [line for line in tried.stdout.decode(errors="replace").splitlines() if line.strip()]
        wrong = next((line for line in said if "error" in line), said[0] if said else "no output")
        raise Lacking(f"the C++ compiler does not work: {wrong.strip()}", compiler, install)


def check_disk(root, need_gb):
    free_gb = shutil.disk_usage(str(root)).free / 1e9
    if free_gb < need_gb:
        raise Lacking(
            f"{free_gb:.1f} GB free, {need_gb:g} GB needed for .venv with torch's CPU build "
            "(CUDA builds take several GB more)",
            root,
            "free some space, or use a checkout on a larger disk",
        )


def torch_version(python):
    """The version of the torch that this interpreter sees, or None."""
    asked = subprocess.run(
        [str(python), "-c", PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return asked.stdout.decode().strip() or None if asked.returncode == 0 else None


def check_torch(version, python):
    digits = [int("".join(filter(str.isdigit, part)) or 0) for part in version.split(".")[:2]]
    if tuple(digits) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise Lacking(
            f"torch {version} is older than {oldest}, and is not replaced without your word",
            python,
            f"upgrade that torch to {oldest} or newer, or name a Python without one: "
            "PYTHON=python3 bash launch/quickstart.sh",
        )


def stamp_of(root, extras):
    """A hash of all that decides what is installed."""
    parts = [json.dumps(sorted(extras)), str(root)]
    parts += [(root / name).read_text() for name in ("constraints.txt", "setup.cfg")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def constraints_for(root, venv, torch):
    """constraints.txt, its torch line replaced by the torch that is there."""
    if torch is None:
        return root / "constraints.txt"
    lines = (root / "constraints.txt").read_text().splitlines()
    lines = [f"torch=={torch}" if line.startswith("torch==") else line for line in lines]
    loosened = venv / "ds_llama-constraints.txt"
    loosened.write_text("\n".join(lines) + "\n")
    return loosened


def run_logged(text, command, log):
    """Run with its output in `log`; say that it takes long every 30 s; show the end if it fails."""
    print(f"{text} …", flush=True)
    started = time.time()
    with open(str(log), "a") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while True:
            try:
                code = process.wait(timeout=30)
                break
            except subprocess.TimeoutExpired:
                print(f"{text}: {time.time() - started:.0f} s so far", flush=True)
    if code != 0:
        tail = log.read_text(errors="replace").splitlines()[-15:]
        print("\n".join(tail), file=sys.stderr)
        full = any("No space left" in line for line in tail)
        remedy = (
            "free some space and start again"
            if full
            else ("see what pip says above; behind a proxy or a mirror set pip's PIP_* variables")
        )
        raise Lacking(f"{text} failed (exit code {code})", log, remedy)
    print(f"{text}: done after {time.time() - started:.0f} s", flush=True)


def make_venv(venv, log):
    command = [sys.executable, "-m", "venv"]
    outside = torch_version(sys.executable)
    if outside is not None:
        check_torch(outside, sys.executable)
        print(f"torch {outside} of {sys.executable} is kept: .venv sees that Python's packages")
        command.append("--system-site-packages")
    log_there = venv.parent / f"{venv.name}.log"
    run_logged(f"making {venv.name}", [*command, str(venv)], log_there)
    log_there.replace(log)
    if outside is not None and sys.prefix != sys.base_prefix:
        # A venv made by a venv sees the packages of the Python below both, not of its maker.
        inside = next(venv.glob("lib/python*/site-packages"))
        outer = sysconfig.get_paths()["purelib"]
        (inside / "ds_llama-outer.pth").write_text(outer + "\n")


def install(root, venv, extras, need_gb):
    check_venv(venv)
    check_compiles()
    check_disk(root, need_gb)
    python, log = venv / "bin" / "python", venv / "ds_llama-install.log"
    if not venv.exists():
        make_venv(venv, log)
    if not python.exists():
        raise Lacking(
            f"{venv.name} is no virtual environment", venv, "remove that folder, then start again"
        )
    torch = torch_version(python)
    if torch is not None:
        check_torch(torch, python)
    limits = str(constraints_for(root, venv, torch))
    pip = [str(python), "-m", "pip", "install", "-c", limits]
    this = str(root) + (f"[{','.join(sorted(extras))}]" if extras else "")
    first = ["setuptools", "wheel"] + ([] if torch else ["torch"])
    run_logged(f"installing {', '.join(first)}", [*pip, *first], log)
    run_logged("installing ds_llama and its dependencies", [*pip, "-e", this], log)
    if torch is not None and torch_version(python) != torch:
        raise Lacking(
            f"torch {torch} was replaced by {torch_version(python)}: a defect of this script",
            log,
            "please report it with that log",
        )


def main(arguments=None):
    check_python()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extra", action="append", default=[], help="an extra of setup.cfg")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout")
    parser.add_argument("--need-gb", type=float, default=NEED_GB, help="disk space to insist on")
    options = parser.parse_args(arguments)
    venv = options.root / ".venv"
    stamp = venv / "ds_llama-stamp.json"
    wanted = stamp_of(options.root, options.extra)
    done = json.loads(stamp.read_text()) if stamp.exists() else []
    if wanted in done:
        return
    install(options.root, venv, options.extra, options.need_gb)
    covered = {stamp_of(options.root, options.extra), stamp_of(options.root, [])}
    stamp.write_text(json.dumps(sorted(covered)))


if __name__ == "__main__":
    try:
        main()
    except Lacking as lacking:
        print(lacking, file=sys.stderr)
        sys.exit(1)
