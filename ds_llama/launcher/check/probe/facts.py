"""What a host has: versions, files, memory, devices, disks, compiled ops, other runs."""

import contextlib
import glob
import hashlib
import importlib.util
import os
import pwd
import re
import subprocess
import sys
import time

_WHOLE_BYTES = 4 * 2**20  # larger files are known by their size and their two ends
_END_BYTES = 2**20
_LAUNCHER = re.compile(
    r"-m (deepspeed\.launcher\.launch|ds_llama\.launcher\.(agent|node)|torch\.distributed\.run) "
)
_RANK = re.compile(r"-m (ds_llama|deepspeed)|--local_rank=")


def digest(path: str) -> "str | None":
    """SHA-256 of a file, of its size and ends if it is large; None when it cannot be read."""
    found = hashlib.sha256()
    try:
        size = os.stat(path).st_size
        with open(path, "rb") as file:
            if size <= _WHOLE_BYTES:
                found.update(file.read())
            else:
                found.update(str(size).encode() + file.read(_END_BYTES))
                file.seek(-_END_BYTES, os.SEEK_END)
                found.update(file.read())
    except OSError:
        return None
    return found.hexdigest()[:16]


def package(name: str = "ds_llama") -> "dict[str, str]":
    """Digest of each source and data file of a package that is not imported."""
    folder = folder_of(name)
    found = {}
    for parent, folders, files in os.walk(folder) if folder else ():
        folders[:] = [each for each in folders if each != "__pycache__"]
        for file in files:
            if file.endswith((".py", ".json", ".html")):
                path = os.path.join(parent, file)
                found[os.path.relpath(path, folder)] = digest(path) or "unreadable"
    return found


def folder_of(name: str) -> "str | None":
    """Where a top-level package is; finding it imports nothing."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    return next(iter(spec.submodule_search_locations or ()), None) if spec else None


def versions() -> "dict[str, str]":
    """Of what is there of torch, deepspeed, ds_llama and NCCL; importing torch would take seconds.

    From the package itself where it says so: another one may be installed than what is imported.
    """
    found = {}  # type: dict[str, str]
    for path in sys.path:
        for info in glob.glob(os.path.join(glob.escape(path or "."), "*.dist-info")):
            name, _, version = os.path.basename(info)[: -len(".dist-info")].partition("-")
            name = "nccl" if name.startswith("nvidia_nccl") else name.lower()
            if name in ("torch", "deepspeed", "nccl"):
                found.setdefault(name, version)
    for name, file in (("torch", "version.py"), ("ds_llama", "__init__.py")):
        text = read(os.path.join(folder_of(name) or os.devnull, file))
        written = re.search(r"""^__version__\s*=\s*['"]([^'"]+)""", text, re.MULTILINE)
        if written:
            found[name] = written.group(1)
    for name in ("torch", "deepspeed"):
        if folder_of(name) is None:
            found.pop(name, None)
    return found


def read(path: str) -> str:
    """A small text file; nothing when it cannot be read."""
    try:
        with open(path, errors="replace") as file:
            return file.read(2**20)
    except OSError:
        return ""


def memory() -> "dict[str, int]":
    """Bytes of this host, or of the part that its control group leaves: all, and available."""
    found = {
        name: int(size) * 1024
        for name, size in re.findall(r"^(\w+): +(\d+) kB", read("/proc/meminfo"), re.MULTILINE)
    }
    total, available = found.get("MemTotal", 0), found.get("MemAvailable", 0)
    group = re.search(r"^0::(/.*)$", read("/proc/self/cgroup"), re.MULTILINE)
    folder = "/sys/fs/cgroup" + (group.group(1).rstrip("/") if group else "")
    for most, now in (
        (folder + "/memory.max", folder + "/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", ""),
    ):
        limit = read(most).strip()
        if limit.isdigit() and int(limit) < total:
            used = read(now).strip()
            total = int(limit)
            available = min(available, total - int(used)) if used.isdigit() else available
    return {"total_bytes": total, "available_bytes": max(0, min(total, available))}


def devices() -> "list[dict[str, object]]":
    """NVIDIA devices with their memory, where nvidia-smi knows it; others by their device files."""
    names = sorted(glob.glob("/dev/nvidia[0-9]*"))
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,memory.used"]
    try:
        words = [*query, "--format=csv,noheader,nounits"]
        text = subprocess.check_output(words, stderr=subprocess.DEVNULL, timeout=3).decode()
    except (OSError, subprocess.SubprocessError):
        return [{"name": name} for name in names]
    found = []
    for line in text.splitlines():
        words = [word.strip() for word in line.rsplit(",", 3)]
        if len(words) != 4:  # "No devices were found"
            continue
        name, driver, total, used = words
        row = {"name": name, "driver": driver}  # type: dict[str, object]
        if total.isdigit() and used.isdigit():
            row["total_bytes"], row["used_bytes"] = int(total) * 2**20, int(used) * 2**20
        found.append(row)
    return found or [{"name": name} for name in names]


def folder(path: str) -> "dict[str, object]":
    """The file system that a folder is on, or will be: its nearest parent that is there."""
    place = os.path.abspath(os.path.expanduser(path))
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    status = os.statvfs(place)
    free = status.f_bavail * status.f_frsize
    found = {"at": place, "free_bytes": free, "inodes_left": status.f_favail or not status.f_files}
    found["writable"] = os.access(place, os.W_OK)
    return found


def extensions() -> str:
    """Where torch compiles ops into (torch/utils/cpp_extension.py)."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.environ.get("TORCH_EXTENSIONS_DIR") or os.path.join(cache, "torch_extensions")


def locks() -> "list[dict[str, object]]":
    """torch's locks around op builds, and whether a process of this host is building."""
    root, found = extensions(), []
    for pattern in ("*/lock", "*/*/lock"):
        for path in glob.glob(os.path.join(glob.escape(root), pattern)):
            with contextlib.suppress(OSError):
                status = os.stat(path)
                age_s = max(0.0, time.time() - status.st_mtime)
                found.append({"path": path, "age_s": age_s, "held": is_open(status)})
    return found


def is_open(status: "os.stat_result") -> bool:
    """Whether a process of this host has that file open, which torch has while it builds."""
    for name in glob.iglob("/proc/[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            found = os.stat(name)
            if (found.st_dev, found.st_ino) == (status.st_dev, status.st_ino):
                return True
    return False


def ops() -> "list[str]":
    """Names of the ops whose library is there."""
    root, found = glob.escape(extensions()), set()
    for pattern in ("*/*.so", "*/*/*.so"):
        for path in glob.glob(os.path.join(root, pattern)):
            found.add(os.path.basename(path)[: -len(".so")])
    return sorted(found)


def runs() -> "list[dict[str, object]]":
    """Other runs: what starts ranks on a node, and ranks that nothing looks after any more."""
    found = []  # type: list[dict[str, object]]
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        told = " ".join(read(path).split("\0")).strip()
        status = read(os.path.join(os.path.dirname(path), "status"))
        orphan = re.search(r"^PPid:\s+1$", status, re.MULTILINE) and _RANK.search(told)
        if not (orphan or _LAUNCHER.search(told)):
            continue
        with contextlib.suppress(OSError, KeyError):
            user = pwd.getpwuid(os.stat(path).st_uid).pw_name
            pid = int(path.split("/")[2])
            found.append({"pid": pid, "user": user, "command": told[:200]})
    return found[:20]
