"""`--dry-run`: the commands of a launch, one a line, for a person to read or to run.

Where an agent supervises the ranks (ssh, pdsh, torchrun), the line of a host is what its agent
would run there: it works without an agent, and unsupervised.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence

from ds_llama.launcher import passthrough, starter
from ds_llama.launcher.job import Job, module_path
from ds_llama.launcher.transports import SSH_OPTIONS, pdsh


def lines(job: Job, launcher: str) -> list[str]:
    """What `launcher` would run for the job; nothing is started and nobody is asked."""
    job = passthrough.with_master(job)
    if launcher in passthrough.LAUNCHERS:
        transport = passthrough.LAUNCHERS[launcher]
        [argv] = transport.commands(job)
        return [line(argv, transport.environment(job))]
    if launcher == "pdsh":
        return [_by_pdsh(job)]
    return [
        line(["ssh", "-T", *SSH_OPTIONS, "--", host.name, _on_host(job, index)])
        for index, host in enumerate(job.hosts)
    ]


def line(argv: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """One line for bash or zsh that runs `argv`, with these variables more."""
    words = [*_assigned(env), *argv] if env else argv
    return " ".join(map(_quoted, words))


def _assigned(env: Mapping[str, str]) -> list[str]:
    return ["env", *(f"{name}={value}" for name, value in sorted(env.items()))]


def _quoted(word: str) -> str:
    """As shlex has it, but for line ends and their like, which would make two lines of one."""
    if word.isprintable():
        return shlex.quote(word)
    text = word.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{''.join(c if c.isprintable() else _escaped(c) for c in text)}'"


def _escaped(character: str) -> str:
    """Byte by byte: bash and zsh take two digits after \\x and no more."""
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def _on_host(job: Job, index: int) -> str:
    """The line for that host's shell, whichever that is."""
    return f"{_environment(job, index)} {shlex.join(starter.argv(job, index, logs=False))}"


def _environment(job: Job, index: int) -> str:
    env = {**job.env, "PYTHONPATH": os.pathsep.join(module_path(job.env))}
    env |= starter.environment(job, index)
    return f"cd {shlex.quote(job.cwd)} && exec {shlex.join(_assigned(env))}"


def _by_pdsh(job: Job) -> str:
    """All hosts by one line, in which pdsh puts a host's number for %n and takes %% for %."""
    words = starter.argv(job, 0, logs=False)
    number = words.index("--node_rank=0")
    parts = [_environment(job, 0), shlex.join(words[:number]), shlex.join(words[number + 1 :])]
    before, front, back = (part.replace("%", "%%") for part in parts)
    [argv] = pdsh.commands(job)
    return line([*argv[:-1], f"{before} {front} --node_rank=%n {back}"], pdsh.environment())
