"""From what hosts said to what is wrong: pure, one small function a question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ds_llama.launcher.check.answers import Facts, Heard
from ds_llama.launcher.check.problems import Problem, Severity
from ds_llama.launcher.check.wants import Need
from ds_llama.units import format_bytes, format_duration

CLOCK_S = 5.0
_LEAST_DISK_BYTES = 16 * 2**20
_BUSY_BYTES = 2**30
_SAME = "install the same environment at the same path on every host"


@dataclass(frozen=True)
class Expected:
    """What is compared with: this machine's package and files, the run's needs, and the call.

    package, files: path to digest. on_cpu: whether ranks compute on cores; `interface` is
    GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME, where one is set.
    """

    python: str
    cwd: str = "."
    package: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str | None] = field(default_factory=dict)
    on_cpu: bool = True
    interface: str | None = None
    port: int = 0
    output: str | None = None
    nvme: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    need: Need | None = None


def problems(heard: Sequence[Heard], expected: Expected) -> list[Problem]:
    """Every problem, the hosts in their order and each one's errors first.

    A host that nothing was heard of, or that lacks its Python or the working folder, has that one
    problem: what would follow from it is left out.
    """
    found = [problem for one in heard for problem in _alone(one, expected)]
    told = [one for one in heard if one.facts is not None and one.facts.cwd_error is None]
    found += [problem for ask in _TOGETHER for problem in ask(told, expected)]
    order = {one.host.name: index for index, one in enumerate(heard)}
    rank = {"error": 0, "warning": 1, "note": 2}
    return sorted(found, key=lambda each: (order.get(each.host, -1), rank[each.severity]))


def on_cpu(heard: Iterable[Heard]) -> bool:
    """Whether no host has a device."""
    return not any(one.facts is not None and one.facts.devices for one in heard)


def _alone(one: Heard, expected: Expected) -> Iterator[Problem]:
    name = one.host.name
    if one.ping is not None and one.ping.at != expected.python:
        version = ".".join(map(str, one.ping.python))
        message = f"there is no {expected.python} ({one.ping.at or 'another'} is Python {version})"
        yield Problem("no-python", "error", name, message, _SAME)
    elif one.fault is not None:
        fault = one.fault
        yield Problem(fault.code, "error", name, fault.message, fault.remedy)
    elif one.facts is not None and one.facts.cwd_error is not None:
        yield Problem(
            "no-folder",
            "error",
            name,
            f"the working folder {expected.cwd} cannot be entered: {one.facts.cwd_error}",
            "start from a folder that is there on every host, by the same path",
        )
    elif one.facts is not None:
        for ask in _EACH:
            yield from ask(one, one.facts, expected)
    if one.clock is not None and abs(one.clock.ahead_s) - one.clock.within_s > CLOCK_S:
        way = "ahead of" if one.clock.ahead_s > 0 else "behind"
        message = f"its clock is {format_duration(abs(one.clock.ahead_s))} {way} this machine's"
        remedy = "let chrony or ntpd set it: times in logs and ages of files will mislead"
        yield Problem("clock", "warning", name, message, remedy)


def _installed(one: Heard, facts: Facts, expected: Expected) -> Iterator[Problem]:
    for package in ("torch", "deepspeed", "ds_llama"):
        if package not in facts.versions:
            message = f"{package} is not installed for {expected.python}"
            yield Problem("not-installed", "error", one.host.name, message, _SAME)


def _code(one: Heard, facts: Facts, expected: Expected) -> Iterator[Problem]:
    if "ds_llama" not in facts.versions:
        return
    names = {*facts.package, *expected.package}
    other = sorted(each for each in names if facts.package.get(each) != expected.package.get(each))
    if other:
        verb = "differs" if len(other) == 1 else "differ"
        message = f"its ds_llama is not this machine's: {_listed(other)} {verb}"
        remedy = "bring the same version or checkout there: the ranks would not agree"
        yield Problem("other-code", "error", one.host.name, message, remedy)


def _files(one: Heard, facts: Facts, expected: Expected) -> Iterator[Problem]:
    for path, digest in expected.files.items():
        found = facts.files.get(path)
        if found is None:
            remedy = "copy it there, or keep it in a folder that all hosts share"
            message = f"{path} cannot be read there"
            yield Problem("no-file", "error", one.host.name, message, remedy)
        elif digest is not None and found != digest:
            remedy = "copy this machine's there, or keep it in a folder that all hosts share"
            message = f"{path} is another file than here"
            yield Problem("other-file", "error", one.host.name, message, remedy)


def _slots(one: Heard, facts: Facts, expected: Expected) -> Iterator[Problem]:
    name, slots = one.host.name, one.host.slots
    wanted, count = max(one.host.device_ids) + 1, len(facts.devices)
    if not expected.on_cpu and count < wanted:
        there = f"{count} devices are" if count != 1 else "1 device is"
        remedy = f"write slots={count}" if count else "see `nvidia-smi` there"
        asked = f"slots={slots}" if wanted == slots else f"device {wanted - 1} is asked for"
        yield Problem("devices", "error", name, f"{asked}, and {there} there", remedy)
    if expected.on_cpu and facts.cores < slots:
        message = f"slots={slots} on {facts.cores} core{'s' * (facts.cores != 1)}"
        remedy = f"write slots={facts.cores}: ranks that share a core wait for each other"
        yield Problem("cores", "warning", name, message, remedy)


def _memory(one: Heard, facts: Facts, expected: Expected) -> Iterator[Problem]:
    if expected.need is None:
        return
    name, slots = one.host.name, one.host.slots
    wanted, there = expected.need.host_bytes * slots, facts.memory
    message = f"its {slots} ranks take {format_bytes(wanted)} of its memory, and "
    if wanted > there.total_bytes:
        message += f"it has {format_bytes(there.total_bytes)}"
        remedy = "take fewer slots, a higher ZeRO stage or less offload: see `ds-llama plan`"
        yield Problem("memory", "error", name, message, remedy)
    elif wanted > there.available_bytes:
        message += f"{format_bytes(there.available_bytes)} are free now"
        yield Problem("memory", "warning", name, message, "end what holds the rest of it")
    wanted = expected.need.device_bytes
    for number, device in enumerate(facts.devices if wanted else ()):
        if number not in one.host.device_ids:
            continue
        total, used = device.total_bytes, device.used_bytes or 0
        message = f"a rank takes {format_bytes(wanted)} of device {number}, and "
        if total is not None and wanted > total:
            message += f"it has {format_bytes(total)}"
            remedy = "take a higher ZeRO stage or an offload: see `ds-llama plan`"
            yield Problem("device-memory", "error", name, message, remedy)
        elif total is not None and used > _BUSY_BYTES and wanted > total - used:
            message += f"{format_bytes(total - used)} are free now"
            yield Problem("device-memory", "warning", name, message, "end what holds the rest")


def _disk(one: Heard, facts: Facts, expected: Expected) -> Iterator[Problem]:
    name, need = one.host.name, expected.need
    full = set()
    for path, folder in facts.folders.items():
        if (folder.free_bytes < _LEAST_DISK_BYTES or not folder.inodes_left) and (
            folder.at not in full
        ):
            full.add(folder.at)
            left = f"{format_bytes(folder.free_bytes)} are" if folder.inodes_left else "no inode is"
            message = f"the disk under {path} is full: {left} left"
            yield Problem("disk-full", "error", name, message, "make room there")
    if need is None:
        return
    wanted = {path: need.nvme_bytes * one.host.slots for path in expected.nvme}
    if expected.output is not None:
        wanted[expected.output] = need.checkpoint_bytes
    for path, size in wanted.items():
        there = facts.folders.get(path)
        if there is None or there.at in full:
            continue
        what = "a checkpoint" if path == expected.output else "the offload"
        if size > there.free_bytes:
            left = f"{format_bytes(there.free_bytes)} are left"
            message = f"{what} takes {format_bytes(size)} in {path}, and {left}"
            yield Problem("disk", "error", name, message, "make room, or name another disk")
        elif path == expected.output and size * (need.keep + 1) > there.free_bytes:
            many = f"{need.keep} checkpoints, and one that is being written,"
            left = f"{format_bytes(there.free_bytes)} are left"
            message = f"{many} take {format_bytes(size * (need.keep + 1))} in {path}, and {left}"
            remedy = "make room, or set checkpoint.keep_last lower"
            yield Problem("disk", "warning", name, message, remedy)
        elif not there.writable:
            remedy = "let your user write there, or name another folder"
            message = f"{there.at} cannot be written to, where {path} will be"
            yield Problem("no-write", "error", name, message, remedy)


def _network(one: Heard, facts: Facts, expected: Expected) -> Iterator[Problem]:
    if facts.port_error is not None:
        message = f"port {expected.port} cannot be listened on: {facts.port_error.lower()}"
        remedy = "give another --master-port, or end what holds it (`ss -ltnp` tells)"
        yield Problem("port", "error", one.host.name, message, remedy)
    names = facts.interfaces.values()
    if expected.interface is not None and not _matches(expected.interface, names):
        message = f"there is no interface {expected.interface}, and it has {_listed(sorted(names))}"
        remedy = "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to what all hosts have"
        yield Problem("interface", "error", one.host.name, message, remedy)


def _matches(wanted: str, names: Iterable[str]) -> bool:
    """NCCL's and gloo's lists: names or beginnings, `=` exact, `^` all but these."""
    if wanted.startswith("^"):
        return True
    prefixes = tuple(each.strip() for each in wanted.removeprefix("=").split(","))
    return any(name.startswith(prefixes) for name in names)


def _left_over(one: Heard, facts: Facts, expected: Expected) -> Iterator[Problem]:
    name = one.host.name
    if facts.runs:
        run, more = facts.runs[0], len(facts.runs) - 1
        message = f"process {run.pid} of {run.user} is of another run: {run.command[:80]}"
        message += f" (and {more} more)" if more else ""
        remedy = "wait for it, or end it if it is a left-over; it is not touched"
        yield Problem("other-run", "warning", name, message, remedy)
    missing = [op for op in expected.ops if op not in facts.ops]
    if missing:
        message = f"{_listed(missing)} will be compiled there first: a minute or more"
        yield Problem("no-op", "note", name, message, "nothing; it happens once")


_EACH: tuple[Callable[[Heard, Facts, Expected], Iterator[Problem]], ...] = (
    *(_installed, _code, _files, _slots, _memory, _disk, _network, _left_over),
)


def _versions(told: Sequence[Heard], expected: Expected) -> Iterator[Problem]:
    for package in ("torch", "deepspeed", "nccl"):
        found = {}
        for one in told:
            version = one.facts.versions.get(package) if one.facts else None
            if version is not None:
                found[one.host.name] = version
        for host, version, common in _odd(found):
            message = f"{package} is {version}, and {common} on the other hosts"
            yield Problem("other-version", "error", host, message, _SAME)
    pythons = {one.host.name: one.ping.python for one in told if one.ping is not None}
    words = {host: ".".join(map(str, version)) for host, version in pythons.items()}
    for host, version, common in _odd(words):
        same = version.split(".")[:2] == common.split(".")[:2]
        severity: Severity = "warning" if same else "error"
        message = f"Python is {version}, and {common} on the other hosts"
        yield Problem("other-version", severity, host, message, _SAME)


def _odd(found: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Host, its value and the most common one (the first host's of equals), where they differ."""
    if found:
        common = Counter(found.values()).most_common(1)[0][0]
        yield from ((host, value, common) for host, value in found.items() if value != common)


def _same_machine(told: Sequence[Heard], expected: Expected) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for one in told:
        machine = one.facts.machine if one.facts is not None else ""
        if machine and machine in first:
            message = f"it is the same machine as {first[machine]}"
            remedy = "keep one of the two lines, with the slots of both"
            yield Problem("same-machine", "error", one.host.name, message, remedy)
        elif machine:
            first[machine] = one.host.name


def _ways(told: Sequence[Heard], expected: Expected) -> Iterator[Problem]:
    port = {one.host.name: one.facts.port for one in told if one.facts is not None}
    for one in told:
        broken = {} if one.pairs is None else one.pairs.reached
        failed = {other: way.error for other, way in broken.items() if way.error is not None}
        for reason in dict.fromkeys(failed.values()):
            others = [other for other, error in failed.items() if error == reason]
            ports = ", ".join(f"{other} (port {port.get(other, 0)})" for other in others[:3])
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            message = f"it does not get through to {ports}{more}: {str(reason).lower()}"
            remedy = "open all ports between the hosts: ranks connect by any of them"
            yield Problem("no-way", "error", one.host.name, message, remedy)


def _shared(told: Sequence[Heard], expected: Expected) -> Iterator[Problem]:
    for one in told:
        marker = one.facts.marker if one.facts is not None else None
        if marker is not None and marker.error is not None:
            remedy = "let your user write there, make room, or name another output"
            message = f"nothing can be written in {marker.path}: {marker.error.lower()}"
            full = one.facts is not None and any(
                folder.at == marker.path and folder.free_bytes < _LEAST_DISK_BYTES
                for folder in one.facts.folders.values()
            )
            if not full:  # which has been said
                yield Problem("no-write", "error", one.host.name, message, remedy)
        if one.pairs is not None and one.pairs.seen is False:
            message = f"{expected.output} is not the same folder as on the first host"
            remedy = "name an output on a file system that all hosts share: checkpoints need it"
            yield Problem("not-shared", "error", one.host.name, message, remedy)


def _locks(told: Sequence[Heard], expected: Expected) -> Iterator[Problem]:
    every = [(one.host.name, lock) for one in told if one.facts for lock in one.facts.locks]
    held = {lock.path for _, lock in every if lock.held}
    for host, lock in every:
        if lock.path not in held:
            age = format_duration(max(0.0, lock.age_s))
            message = f"a build was killed {age} ago and left {lock.path}, on which others wait"
            remedy = f"rm {lock.path}, unless a machine outside the hostfile is compiling"
            yield Problem("stale-lock", "warning", host, message, remedy)


_TOGETHER: tuple[Callable[[Sequence[Heard], Expected], Iterator[Problem]], ...] = (
    *(_versions, _same_machine, _ways, _shared, _locks),
)


def _listed(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more
