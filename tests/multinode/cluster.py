"""Hosts on this machine: each a network, pid, mount, name and ipc namespace with an sshd.

    switch (a network namespace with a bridge)
      ├─ node0  10.77.0.10  pid 1: sshd     own /proc, home, /run, /dev/shm, host name
      ├─ node1  10.77.0.11  pid 1: sshd     files but these are shared, as over NFS
      └─ …

Nothing has a name outside: a host's network namespace lives as long as a descriptor of this process
is open, its processes as long as its pid 1, which the kernel kills with this process. So any number
of clusters may run at once, and nothing stays however a test ends.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

NETWORK = "10.77.0"
_TOOLS = ("ip", "sshd", "ssh", "ssh-keygen", "pdsh", "nsenter", "unshare", "setpriv")
_PATH = ":".join(
    [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin:/sbin"]
)
_BOOT_S = 100.0  # a quarter of a second where nothing else runs
_DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
_NAMESPACES = ("--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc")

_SSHD = """\
ListenAddress {address}
Port 22
HostKey {folder}/host_key
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
PermitRootLogin prohibit-password
AuthorizedKeysFile .ssh/authorized_keys
MaxStartups 100
SetEnv TORCH_EXTENSIONS_DIR={extensions}
"""

_BOOT = """\
hostname {name}
mount --bind {folder}/hosts /etc/hosts
mount --bind {host}/home {folder}/home
mount --bind {folder}/passwd /etc/passwd
mount -t tmpfs tmpfs /run && mkdir -p /run/sshd
mount -t tmpfs tmpfs /dev/shm
cd /
exec {sshd} -D -e -f {host}/sshd_config
"""


def missing() -> str | None:
    """Why there can be no cluster here; None when there can."""
    if os.geteuid() != 0:
        return "hosts in namespaces need root"
    lacking = [tool for tool in _TOOLS if shutil.which(tool, path=_PATH) is None]
    if lacking:
        return f"hosts in namespaces need {', '.join(lacking)} (iproute2, openssh-server, pdsh)"
    tried = subprocess.run(
        ["unshare", "--net", *_NAMESPACES, "ip", "link", "add", "port0", "type", "veth"],
        env={"PATH": _PATH},
        capture_output=True,
        text=True,
    )
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


class Cluster:
    """`count` hosts named node0, node1, …; a context manager."""

    def __init__(self, count: int, folder: Path) -> None:
        self.count, self.folder = count, folder
        self.names = [f"node{i}" for i in range(count)]
        self._networks: dict[str, int] = {}
        self._hosts: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        try:
            self._write_files()
            self._wire()
            for host in range(self.count):
                self._start(host)
            for host in range(self.count):
                self._wait_for_sshd(host)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process of every host."""
        for host in list(self._hosts):
            self.crash(host)
        for descriptor in self._networks.values():
            os.close(descriptor)
        self._networks.clear()

    @staticmethod
    def address(host: int) -> str:
        """The address of a host in its network."""
        return f"{NETWORK}.{10 + host}"

    def write_hostfile(self, slots: Sequence[int], name: str = "hostfile") -> Path:
        """A hostfile of the first hosts with these slots."""
        path = self.folder / name
        lines = [f"node{host} slots={count}\n" for host, count in enumerate(slots)]
        path.write_text("".join(lines))
        return path

    def start(
        self, host: int, *words: str, env: Mapping[str, str] | None = None, **settings: Any
    ) -> subprocess.Popen[str]:
        """Start a command on a host, as someone who is logged in there; `settings` as Popen's.

        Nothing of this process's environment is seen there. The process is nsenter's, the parent
        of the command: `signal` reaches the command.
        """
        folder = settings.pop("cwd", self.folder)
        home = f"HOME={self.folder}/home"
        found = {"PATH": _PATH, "TERM": "dumb", "LANG": "C.UTF-8", **_extensions(), **(env or {})}
        spaces = ("-n", "-m", "-u", "-i", "-p", f"--wdns={folder}")
        variables = [home, *(f"{name}={value}" for name, value in found.items())]
        return subprocess.Popen(
            ["nsenter", "-t", str(self.pid(host)), *spaces, "env", "-i", *variables, *words],
            **{"stdin": subprocess.DEVNULL, "text": True, **settings},
        )

    def run(
        self,
        host: int,
        *words: str,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 300.0,
        **settings: Any,
    ) -> subprocess.CompletedProcess[str]:
        """As `start`, to the end; stdout and stderr are captured. All of it ends at the time-out.

        Raises subprocess.TimeoutExpired.
        """
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings}
        process = self.start(host, *words, env=env, **both)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.signal(process, signal.SIGKILL)
            process.communicate()
            raise
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def signal(self, process: subprocess.Popen[str], signum: int) -> None:
        """Send a signal to a command that `start` started, unless it has ended."""
        with suppress(psutil.NoSuchProcess):
            while process.poll() is None:
                if commands := psutil.Process(process.pid).children():
                    commands[0].send_signal(signum)
                    return
                time.sleep(0.01)  # nsenter has not come so far as to start it

    def processes(self, host: int) -> list[psutil.Process]:
        """All of a host but its sshd, with pids as seen from here; none when it is down.

        `info` has "name" and "cmdline" of each as they were seen: it may have ended since.
        """
        space, found = self._pid_space(host), []
        for process in psutil.process_iter(["name", "cmdline", "status"]):
            with suppress(OSError):
                inside = os.readlink(f"/proc/{process.pid}/ns/pid") == space
                name, words, status = (process.info[key] for key in ("name", "cmdline", "status"))
                is_over = words is None or status == psutil.STATUS_ZOMBIE
                if inside and not is_over and not name.startswith("sshd"):
                    found.append(process)
        return found

    def link(self, host: int, state: str) -> None:
        """Cut ("down") or mend ("up") the cable: silence, nobody is told."""
        self._ip(self._networks["switch"], "link", "set", f"port{host}", state)

    def crash(self, host: int) -> None:
        """Every process of the host dies; the others hear of it by connections that close."""
        started = self._hosts.pop(host, None)
        if started is None:
            return
        with suppress(psutil.Error):
            for first in psutil.Process(started.pid).children():
                first.kill()  # pid 1 takes the rest along
        started.kill()
        started.wait()

    def poweroff(self, host: int) -> None:
        """Every process of the host dies, and nobody hears of it."""
        self.link(host, "down")
        self.crash(host)

    def boot(self, host: int) -> None:
        """Start a host that is down, its cable mended."""
        self.link(host, "up")
        self._start(host)
        self._wait_for_sshd(host)

    def refuse_key(self, host: int) -> None:
        """The host lets nobody in; `accept_key` undoes it."""
        (self._home(host) / ".ssh/authorized_keys").write_text("")

    def accept_key(self, host: int) -> None:
        """The host lets everybody in who has the cluster's key."""
        shutil.copy(self.folder / "key.pub", self._home(host) / ".ssh/authorized_keys")

    def forget_host_key(self, host: int) -> None:
        """The host is not in anybody's known_hosts; `know_host_keys` undoes it."""
        self._write_known_hosts([other for other in range(self.count) if other != host])

    def know_host_keys(self) -> None:
        """Every host's key is in everybody's known_hosts."""
        self._write_known_hosts(list(range(self.count)))

    def pid(self, host: int) -> int:
        """Of the host's pid 1, as seen from here."""
        return int(psutil.Process(self._hosts[host].pid).children()[0].pid)

    def _pid_space(self, host: int) -> str | None:
        return os.readlink(f"/proc/{self.pid(host)}/ns/pid") if host in self._hosts else None

    def _home(self, host: int) -> Path:
        return self.folder / self.names[host] / "home"

    def _write_files(self) -> None:
        home = self.folder / "home"
        home.mkdir(parents=True)
        for name in ("key", "host_key"):
            words = ("-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name))
            subprocess.run(["ssh-keygen", *words], check=True)
        users = Path("/etc/passwd").read_text().splitlines()
        users = [user for user in users if not user.startswith("root:")]
        root = f"root:x:0:0:root:{home}:/bin/bash"
        (self.folder / "passwd").write_text("\n".join([root, *users, ""]))
        hosts = [f"{self.address(host)} {name}" for host, name in enumerate(self.names)]
        (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *hosts, ""]))
        for host, name in enumerate(self.names):
            keys = self._home(host) / ".ssh"
            keys.mkdir(parents=True)
            shutil.copy(self.folder / "key", keys / "id_ed25519")
            self.accept_key(host)
            settings = _SSHD.format(
                address=self.address(host),
                folder=self.folder,
                extensions=_extensions()["TORCH_EXTENSIONS_DIR"],
            )
            (self.folder / name / "sshd_config").write_text(settings)
        self.know_host_keys()

    def _write_known_hosts(self, known: list[int]) -> None:
        kind, key, *_ = (self.folder / "host_key.pub").read_text().split()
        lines = [f"{self.names[host]},{self.address(host)} {kind} {key}\n" for host in known]
        for host in range(self.count):
            (self._home(host) / ".ssh/known_hosts").write_text("".join(lines))

    def _wire(self) -> None:
        for name in ("switch", *self.names):
            self._networks[name] = _new_network()
        switch = self._networks["switch"]
        self._ip(switch, "link", "add", "bridge0", "type", "bridge")
        self._ip(switch, "link", "set", "bridge0", "up")
        for host, name in enumerate(self.names):
            inside, port = self._networks[name], f"port{host}"
            other = f"/proc/{os.getpid()}/fd/{inside}"
            words = ("type", "veth", "peer", "name", "eth0", "netns", other)
            self._ip(switch, "link", "add", port, *words)
            self._ip(switch, "link", "set", port, "master", "bridge0", "up")
            self._ip(inside, "link", "set", "lo", "up")
            self._ip(inside, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            self._ip(inside, "link", "set", "eth0", "up")

    @staticmethod
    def _ip(network: int, *words: str) -> None:
        done = subprocess.run(
            ["nsenter", f"--net=/proc/self/fd/{network}", "ip", *words],
            env={"PATH": _PATH},
            pass_fds=[network],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"

    def _start(self, host: int) -> None:
        name, network = self.names[host], self._networks[self.names[host]]
        script = _BOOT.format(
            name=name,
            folder=shlex.quote(str(self.folder)),
            host=shlex.quote(str(self.folder / name)),
            sshd=shutil.which("sshd", path=_PATH),
        )
        enter = (*_DIES_WITH_US, "nsenter", f"--net=/proc/self/fd/{network}", "unshare")
        with (self.folder / name / "sshd.log").open("wb") as log:
            self._hosts[host] = subprocess.Popen(
                [*enter, *_NAMESPACES, "bash", "-ec", script],
                env={"PATH": _PATH},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[network],
                start_new_session=True,
            )

    def _wait_for_sshd(self, host: int) -> None:
        log, deadline = self.folder / self.names[host] / "sshd.log", time.monotonic() + _BOOT_S
        while b"listening on" not in log.read_bytes():
            assert time.monotonic() < deadline, f"node{host} does not start: {log.read_text()}"
            time.sleep(0.02)


def _new_network() -> int:
    """A descriptor of a new network namespace, which lives as long as somebody holds one."""
    words = [*_DIES_WITH_US, "unshare", "--net", "sh", "-c", "echo; exec sleep 60"]
    with subprocess.Popen(words, env={"PATH": _PATH}, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it is there
        descriptor = os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY)
        process.kill()
    return descriptor


def _extensions() -> dict[str, str]:
    """Where this machine's compiled ops are: a host's home has none."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    return {"TORCH_EXTENSIONS_DIR": given or os.path.expanduser("~/.cache/torch_extensions")}
