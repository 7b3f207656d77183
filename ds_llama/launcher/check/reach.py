"""How a program is run on a host, and what it means when that does not work."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ds_llama.launcher.check.limits import Limits
from ds_llama.launcher.hostfile import Host

_LIMITS = Limits()

# Nothing of the user's is changed or used up: no entry in known_hosts, no shared or forwarded
# connection. The words of errors are those of LC_ALL=C, and are printed whatever LogLevel is set.
SSH = (
    *("ssh", "-T", "-a", "-x"),
    *("-oBatchMode=yes", "-oConnectionAttempts=1"),
    *("-oUpdateHostKeys=no", "-oControlPath=none", "-oClearAllForwardings=yes"),
    *("-oLogLevel=ERROR", "-oServerAliveInterval=2", "-oServerAliveCountMax=3"),
)
# --overlap: beside the steps that the allocation runs already.
SRUN = ("srun", "--overlap", "--quiet", "--unbuffered")
_NO_PYTHON = 72
_FIRST_OF = (
    'code=$1 size=$2 mark=$3; shift 3; for each in "$@"; do command -v "$each" >/dev/null 2>&1 && '
    f'exec "$each" -u -c "$code" "$size" "$mark"; done; exit {_NO_PYTHON}'
)
_BOOT = (
    "import sys; sys.version_info < (3, 6) and sys.exit('ds-llama: Python %d.%d' % "
    "sys.version_info[:2]); exec(sys.stdin.buffer.read(int(sys.argv[1])).decode())"
)


@dataclass(frozen=True)
class Fault:
    """Why nothing was heard of a host: a stable code, what happened, what to do."""

    code: str
    message: str
    remedy: str


@dataclass(frozen=True)
class Reach:
    """`words`: argv that runs an argv on a host. `explain`: from its last words to a fault.
    `all_ranks`: argv that runs an argv once a rank; None where a launch does that."""

    words: Callable[[str, Sequence[str]], list[str]]
    explain: Callable[[str, str], Fault]
    all_ranks: Callable[[Sequence[Host], Sequence[str]], list[str]] | None = None

    def argv(self, host: str, python: str, size_bytes: int, mark: str) -> list[str]:
        """argv of the probe, whose program follows on stdin; another Python where there is not
        this one, which can say what else is not there."""
        words = ["sh", "-c", _FIRST_OF, "sh", _BOOT, str(size_bytes), mark]
        return self.words(host, [*words, python, "python3", "python"])

    def why(self, host: str, python: str, code: int, stderr: str) -> Fault:
        """What ended the connection to a host without an answer."""
        if code == _NO_PYTHON:
            return Fault(
                "no-python",
                f"there is no Python: neither {python} nor python3",
                "install the same environment at the same path on every host",
            )
        if old := re.search(r"^ds-llama: Python (\d+\.\d+)$", stderr, re.MULTILINE):
            return Fault(
                "no-python",
                f"there is no {python}, and python is {old[1]}",
                "install the same environment at the same path on every host",
            )
        return self.explain(host, stderr)


def ssh(options: Sequence[str] = (), limits: Limits = _LIMITS) -> Reach:
    """Over ssh, as the launch goes; the host's shell gets one quoted line."""
    connect = f"-oConnectTimeout={limits.connect_s}"

    def words(host: str, remote: Sequence[str]) -> list[str]:
        return [*SSH, connect, *options, "--", host, shlex.join(remote)]

    return Reach(words, partial(_ssh_fault, connect_s=limits.connect_s))


def srun() -> Reach:
    """As a step of this Slurm allocation, on hosts that need no ssh between them."""

    def words(host: str, remote: Sequence[str]) -> list[str]:
        return [*SRUN, "--nodes=1", "--ntasks=1", f"--nodelist={host}", *remote]

    def all_ranks(hosts: Sequence[Host], rank: Sequence[str]) -> list[str]:
        names, most = ",".join(host.name for host in hosts), max(host.slots for host in hosts)
        tasks = [f"--ntasks={sum(host.slots for host in hosts)}", f"--ntasks-per-node={most}"]
        return [*SRUN, f"--nodes={len(hosts)}", *tasks, f"--nodelist={names}", *rank]

    return Reach(words, _srun_fault, all_ranks)


def environment(env: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment, in which ssh and srun speak English."""
    return {**(os.environ if env is None else env), "LC_ALL": "C"}


# Pattern in the words of OpenSSH (sshconnect.c, readconf.c, clientloop.c), code, what it means,
# what to do. The first that is found counts.
_SSH_FAULTS = (
    (
        "Could not resolve hostname",
        "ssh-name",
        "its name is not known here",
        "mend the name in the hostfile, or add it to DNS, /etc/hosts or ~/.ssh/config",
    ),
    (
        "No route to host|Network is unreachable",
        "ssh-no-route",
        "there is no way to it: it is down, or its network is",
        "see whether the host is up and its cable in, or take it out of the hostfile",
    ),
    (
        "Connection refused",
        "ssh-refused",
        "it is up, and nothing listens for ssh there",
        "start sshd on it, or name its port in ~/.ssh/config",
    ),
    (
        "[Cc]onnection timed out|Operation timed out|Timeout, server",
        "ssh-timeout",
        "it does not answer ssh within {connect_s} s",
        "see whether the host is up and no firewall is between, or take it out of the hostfile",
    ),
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "ssh-host-key-changed",
        "its host key is not the one in known_hosts: it was set up anew, or is another machine",
        "when you know why, remove the old key: ssh-keygen -R {host}",
    ),
    (
        "Host key verification failed",
        "ssh-host-key-unknown",
        "its host key is not known yet",
        "log in once by hand and compare the key: ssh {host}",
    ),
    (
        "UNPROTECTED PRIVATE KEY FILE|bad permissions",
        "ssh-key-file",
        "ssh does not use your private key: others may read its file",
        "chmod 600 the key in ~/.ssh",
    ),
    (
        "Too many authentication failures",
        "ssh-permission",
        "it refuses your keys: too many were offered",
        "name the right one with IdentityFile and IdentitiesOnly in ~/.ssh/config",
    ),
    (
        "Permission denied",
        "ssh-permission",
        "it lets you in with none of your keys, and nobody is there to type a password",
        "put your key there: ssh-copy-id {host}",
    ),
    (
        "Bad configuration option|Bad owner or permissions|terminating, [0-9]+ bad",
        "ssh-config",
        "ssh does not read its configuration here: {line}",
        "mend that line in ~/.ssh/config",
    ),
    (
        "kex_exchange_identification|Connection (closed|reset)|Broken pipe|closed by remote host",
        "ssh-closed",
        "it closes the connection: {line}",
        "see sshd's log there (MaxStartups, AllowUsers, a shell or quota that fails)",
    ),
)


def _ssh_fault(host: str, stderr: str, connect_s: int) -> Fault:
    for pattern, code, message, remedy in _SSH_FAULTS:
        if found := re.search(f"^.*(?:{pattern}).*$", stderr, re.MULTILINE):
            line = found[0].strip()[:200]
            return Fault(
                code, message.format(line=line, connect_s=connect_s), remedy.format(host=host)
            )
    return Fault("ssh-failed", _last(stderr), f"see what `ssh {host} true` says")


def _srun_fault(host: str, stderr: str) -> Fault:
    remedy = "see `scontrol show node`, and that this runs inside an allocation (salloc, sbatch)"
    return Fault("srun-failed", _last(stderr), remedy)


def _last(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return f"it ended without an answer: {lines[-1][:200] if lines else 'nothing was printed'}"
