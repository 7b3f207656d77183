"""A real Slurm on this machine: a controller and nodes, each a network, pid and name namespace.

    box (mount, network, pid and name namespaces; pid 1 waits)
      ├─ login  10.99.0.1   slurmctld; where sbatch, srun and scancel are called
      ├─ n0     10.99.0.10  slurmd, 2 CPUs and 2 "GPUs", which are null devices
      ├─ n1     10.99.0.11  no sshd, and no way between nodes but Slurm and the network
      └─ …

Nothing has a name outside of the box, and the kernel ends it all with this process. Slurm trusts
whoever calls (auth/none), so nothing but its own three packages is needed.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

_TOOLS = ("slurmctld", "slurmd", "srun", "sbatch", "ip", "nsenter", "unshare", "setpriv")
_PATH = ":".join(
    [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin:/sbin"]
)
_DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
_SPACES = ("--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
_BOOT_S = 200.0  # half a second where nothing else runs

# cred_expire: a requeued job waits for as long as its credentials are good, 120 s by default.
_CONF = """\
ClusterName=lab
SlurmctldHost=login(10.99.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
SlurmctldTimeout=300
SlurmdTimeout={silent_s}
MessageTimeout={patience_s}
GresTypes=gpu
NodeName=n[0-{last}] NodeAddr=10.99.0.[10-{last_address}] CPUs=2 RealMemory=2000 Gres=gpu:2
PartitionName=main Nodes=n[0-{last}] Default=YES MaxTime=INFINITE State=UP
"""

_BOOT = """\
cd {folder}
hostname login
mount --bind hosts /etc/hosts
ip link set lo up
ip link add bridge0 type bridge
ip addr add 10.99.0.1/24 dev bridge0
ip link set bridge0 up
slurmctld -D -c > slurmctld.out 2>&1 &
for i in $(seq 0 {last}); do
    unshare {spaces} bash -ec "
        hostname n$i
        ip link set lo up
        until ip link set eth0 up 2> /dev/null; do sleep 0.02; done
        ip addr add 10.99.0.$((10 + i))/24 dev eth0
        exec slurmd -D -N n$i" > slurmd-n$i.out 2>&1 &
    echo $! > n$i.pid
    until [ $(readlink /proc/$!/ns/net) != $(readlink /proc/$$/ns/net) ]; do sleep 0.02; done
    ip link add port$i type veth peer name eth0 netns $!
    ip link set port$i master bridge0 up
done
touch booted
exec sleep infinity
"""


def missing() -> str | None:
    """Why there can be no Slurm here; None when there can."""
    if os.geteuid() != 0:
        return "a Slurm in namespaces needs root"
    lacking = [tool for tool in _TOOLS if shutil.which(tool, path=_PATH) is None]
    if lacking:
        packages = "slurmctld, slurmd, slurm-client, iproute2"
        return f"a Slurm in namespaces needs {', '.join(lacking)} ({packages})"
    words = ["unshare", *_SPACES, "ip", "link", "add", "port0", "type", "veth"]
    tried = subprocess.run(words, env={"PATH": _PATH}, capture_output=True, text=True)
    if tried.returncode:
        return f"no namespaces here: {tried.stderr.strip()}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            _make_device(Path(folder, "gpu0"))
        except OSError as error:
            return f"a Slurm in namespaces needs device files, and mknod says {error.strerror}"
    return None


class SlurmCluster:
    """`count` nodes n0, n1, …, of two CPUs each; a context manager.

    silent_s: after which Slurm takes a node for dead; one on a busy machine is only late.
    """

    def __init__(self, count: int, folder: Path, silent_s: int = 120) -> None:
        self.count, self.folder, self._silent_s = count, folder, silent_s
        self._box: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SlurmCluster:
        try:
            self._write_files()
            self._boot()
            wait(self._is_up, _BOOT_S, what="Slurm", every_s=0.1)
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
        """End every process of the cluster."""
        if self._box is not None:
            with suppress(psutil.NoSuchProcess):
                for first in psutil.Process(self._box.pid).children():
                    first.kill()  # pid 1 takes the rest along
            self._box.kill()
            self._box.wait()
            self._box = None

    def start(
        self, *words: str, env: Mapping[str, str] | None = None, **settings: Any
    ) -> subprocess.Popen[str]:
        """Start a command on the login node, which sees nothing of this process's environment."""
        assert self._box is not None
        [first] = psutil.Process(self._box.pid).children()
        spaces = ("-m", "-n", "-u", "-p", f"--wdns={settings.pop('cwd', self.folder)}")
        found = {"PATH": _PATH, "LANG": "C.UTF-8", "HOME": str(self.folder), "USER": "root"}
        found |= {"SLURM_CONF": str(self.folder / "slurm.conf")}
        # Numbers of jobs begin at 1 in each cluster, and name folders there.
        found |= {"TMPDIR": str(self.folder / "tmp"), **(env or {})}
        variables = [f"{name}={value}" for name, value in found.items()]
        return subprocess.Popen(
            ["nsenter", "-t", str(first.pid), *spaces, "env", "-i", *variables, *words],
            **{"stdin": subprocess.DEVNULL, "text": True, **settings},
        )

    def run(
        self,
        *words: str,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 200.0,
        **settings: Any,
    ) -> subprocess.CompletedProcess[str]:
        """As `start`, to the end, with stdout and stderr; raises subprocess.TimeoutExpired."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = self.start(*words, env=env, **pipes, **settings)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            with suppress(psutil.NoSuchProcess):
                for command in psutil.Process(process.pid).children(recursive=True):
                    command.kill()
            process.kill()
            process.communicate()
            raise
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def ask(self, *words: str) -> str:
        """What a command that must succeed prints, without the newline at its end."""
        done = self.run(*words)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout.strip()

    def state(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Restarts, ExitCode, …"""
        words = self.ask("scontrol", "show", "job", job, "--oneliner").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, job: str, *states: str, timeout_s: float = 200.0) -> dict[str, str]:
        """Until the job is in one of these states."""
        wait(
            lambda: self.state(job)["JobState"] in states,
            timeout_s,
            what=f"job {job} {' or '.join(states)}",
            every_s=0.2,
        )
        return self.state(job)

    def cancel_all(self) -> None:
        """End every job, and wait until the nodes are free of them."""
        self.ask("scancel", "--user=root", "--signal=KILL", "--full")
        self.ask("scancel", "--user=root")
        wait(lambda: not self.ask("squeue", "--noheader"), 200.0, what="an empty queue")

    def crash(self, node: str) -> None:
        """Every process of the node dies at once, its slurmd first."""
        self.ask("kill", "-KILL", (self.folder / f"{node}.pid").read_text().strip())

    def processes(self, word: str) -> list[psutil.Process]:
        """Living processes of the cluster with this word on their command line.

        `info` has what `as_dict` says of each as it was seen: it may have ended since.
        """
        assert self._box is not None
        found = []
        for process in psutil.Process(self._box.pid).children(recursive=True):
            with suppress(psutil.Error):
                process.info = process.as_dict(["cmdline", "environ", "exe", "name", "status"])
                is_over = process.info["status"] == psutil.STATUS_ZOMBIE
                if word in (process.info["cmdline"] or []) and not is_over:
                    found.append(process)
        return found

    def _write_files(self) -> None:
        for name in ("state", "spool", "tmp"):
            (self.folder / name).mkdir(parents=True)
        last = self.count - 1
        settings = {"folder": self.folder, "last": last, "last_address": 10 + last}
        settings |= {"silent_s": self._silent_s, "patience_s": min(60, self._silent_s)}
        (self.folder / "slurm.conf").write_text(_CONF.format(**settings))
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=autodetect\n")
        for device in range(2):
            _make_device(self.folder / f"gpu{device}")
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-1]\n")
        hosts = [f"10.99.0.{10 + node} n{node}\n" for node in range(self.count)]
        text = "127.0.0.1 localhost\n10.99.0.1 login\n" + "".join(hosts)
        (self.folder / "hosts").write_text(text)

    def _boot(self) -> None:
        script = _BOOT.format(folder=self.folder, last=self.count - 1, spaces=" ".join(_SPACES))
        with (self.folder / "boot.log").open("wb") as log:
            self._box = subprocess.Popen(
                [*_DIES_WITH_US, "unshare", *_SPACES, "bash", "-ec", script],
                env={"PATH": _PATH, "SLURM_CONF": str(self.folder / "slurm.conf")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _is_up(self) -> bool:
        assert self._box is not None
        assert self._box.poll() is None, (self.folder / "boot.log").read_text()
        if not (self.folder / "booted").exists():
            return False
        states = self.run("sinfo", "--noheader", "--Node", "--format=%t").stdout.split()
        return states == ["idle"] * self.count


def _make_device(path: Path) -> None:
    """What Slurm takes for a GPU: another null device."""
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))


def wait(
    condition: Callable[[], bool], timeout_s: float, *, what: str, every_s: float = 0.05
) -> None:
    """Until the condition holds; fails with `what` did not come in time."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {timeout_s:g} s"
        time.sleep(every_s)
