"""A launch over the hosts of a cluster, of ranks that do as they are told, to see how it ends."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.multinode.cluster import Cluster

# Does what is written in the file do-RANK, once there is one.
RANK = """
import json, os, signal, sys, time
from pathlib import Path
from ds_llama.launcher.marks import report_finished
from ds_llama.launcher.orphan import die_with_parent

die_with_parent()
rank, folder = os.environ["RANK"], Path(os.environ["DS_TEST_FOLDER"])
facts = {"argv": sys.argv[1:], "env": dict(os.environ), "host": os.uname().nodename}
(folder / f"{rank}.part").write_text(json.dumps(facts))
(folder / f"{rank}.part").rename(folder / f"{rank}.json")
print(f"rank {rank} is up", flush=True)
while not (folder / f"do-{rank}").exists():
    time.sleep(0.05)
word, _, value = (folder / f"do-{rank}").read_text().partition(" ")
if word == "finish":
    report_finished()
elif word == "raise":
    raise ValueError(value)
elif word == "leave":
    pass
elif word == "exit":
    os._exit(int(value))
elif word == "signal":
    os.kill(os.getpid(), int(value))
elif word == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (folder / f"deaf-{rank}").touch()
    time.sleep(3600)
"""

TOP = """
import json, signal, sys
from ds_llama.errors import DsLlamaError
from ds_llama.launcher.run import launch
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
settings = json.loads(sys.argv[1])
try:
    sys.exit(launch(settings.pop("arguments"), module="told", **settings))
except DsLlamaError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


class Launched:
    """`launch` on node0, over hosts with these slots. All times have limits."""

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        slots: Sequence[int],
        arguments: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        self.cluster, self.folder, self.world_size = cluster, folder, sum(slots)
        folder.mkdir()
        (folder / "told.py").write_text(RANK)
        (folder / "top.py").write_text(TOP)
        hostfile = cluster.write_hostfile(slots, f"hostfile-{folder.name}")
        given = {"arguments": list(arguments), "hostfile": str(hostfile), **settings}
        repository = Path(__file__).parents[2]
        env = {"DS_TEST_FOLDER": str(folder), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        env |= {"PYTHONPATH": str(repository), "PYTHONWARNINGS": "ignore"}
        self.out, self.err = (folder / "out"), (folder / "err")
        with self.out.open("w") as out, self.err.open("w") as err:
            words = (sys.executable, "top.py", json.dumps(given))
            self.top = cluster.start(0, *words, env=env, cwd=folder, stdout=out, stderr=err)

    def wait_until_up(self, seconds: float = 120.0) -> None:
        """Every rank has begun."""
        self.wait(lambda: all((self.folder / f"{r}.json").exists() for r in self.ranks), seconds)

    @property
    def ranks(self) -> range:
        return range(self.world_size)

    def wait(self, true: Callable[[], bool], seconds: float) -> float:
        """Seconds until `true`."""
        began = time.monotonic()
        while not true():
            waited = time.monotonic() - began
            assert waited < seconds, f"{self.out.read_text()}\n{self.err.read_text()}"
            time.sleep(0.05)
        return time.monotonic() - began

    def facts(self, rank: int) -> dict[str, Any]:
        """argv, environment and host of a rank."""
        found: dict[str, Any] = json.loads((self.folder / f"{rank}.json").read_text())
        return found

    def tell(self, rank: int, word: str) -> None:
        """finish, raise TEXT, leave, exit N, signal N or deaf."""
        path = self.folder / f"told-{rank}"
        path.write_text(word)
        path.rename(self.folder / f"do-{rank}")

    def tell_all(self, word: str) -> None:
        """Every rank the same."""
        for rank in self.ranks:
            self.tell(rank, word)

    def signal(self, signum: int) -> None:
        """To the launcher."""
        self.cluster.signal(self.top, signum)

    def end(self, seconds: float = 120.0) -> int:
        """The launcher's exit code, within so many seconds; nothing of the launch is left then."""
        self.wait(lambda: self.top.poll() is not None, seconds)
        self.wait(lambda: not self.left(), seconds)
        code = int(self.top.returncode)
        return 128 - code if code < 0 else code

    def close(self) -> None:
        """However a test went, its launcher ends."""
        if self.top.poll() is None:
            self.signal(signal.SIGKILL)
            self.top.wait(100)

    def left(self) -> list[psutil.Process]:
        """What lives of the launch, on all hosts."""
        mark, found = f"DS_TEST_FOLDER={self.folder}", []
        for host in range(self.cluster.count):
            for process in self.cluster.processes(host):
                try:
                    variables = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
                except OSError:
                    continue
                if mark.encode() in variables:
                    found.append(process)
        return found

    def of(self, host: int, word: str) -> list[psutil.Process]:
        """The processes of the launch on a host that have the word in their command line."""
        inside = {process.pid for process in self.cluster.processes(host)}
        return [p for p in self.left() if p.pid in inside and word in p.info["cmdline"]]

    @property
    def last_line(self) -> str:
        """The last that was printed."""
        return self.err.read_text().rstrip().splitlines()[-1]


def kill(processes: Sequence[psutil.Process], signum: int = signal.SIGKILL) -> None:
    """Send a signal to processes, of which there must be some; one may have ended since."""
    assert processes
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signum)
