"""What ends a run over two hosts, and how long that takes: every event, under real training.

    python -m tests.campaigns.multinode [--events PATTERN,…] [--moments rest,save]
        [--who ours,plain] [--limit SECONDS] [--rows FILE]

Each event is `ds-llama train RUN --hostfile H` over two hosts in namespaces with one and two ranks
(tests/multinode/cluster.py), and something that is done to it: between two saves (`rest`) or once
one has begun (`save`). Prints, and adds to --rows as JSON, a row each: seconds until the launcher
has ended and nothing of the run lives on any host that can still be reached, its exit code,
processes left, its last line, and the steps that a restart makes again: those in metrics.jsonl
after the newest complete checkpoint.

`plain` does the same to `deepspeed --hostfile H` (DeepSpeed's own launcher, pdsh) with ranks that
all-reduce in a loop and know nothing of ds_llama; --limit says how long it is waited for.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import psutil

from ds_llama.data import ShardWriter
from tests.campaigns.kill import curve, newest
from tests.multinode.cluster import Cluster

REPOSITORY = Path(__file__).parents[2]
SLOTS = (1, 2)
OURS_S, START_S, HANG_S = 90.0, 120.0, 8.0

# Every Python of a run imports it: a rank does what is written in the file do-RANK.
SITECUSTOMIZE = """
import os, threading
def watch(path):
    import ctypes, time
    while not os.path.exists(path):
        time.sleep(0.01)
    word = open(path).read()
    if word == "exit":
        os._exit(3)
    kind = {"memory": MemoryError, "raise": ValueError}[word]
    thread = ctypes.c_ulong(threading.main_thread().ident)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(kind))
folder, rank = os.environ.get("DS_CAMPAIGN"), os.environ.get("RANK")
if folder and rank:
    threading.Thread(target=watch, args=(f"{folder}/do-{rank}",), daemon=True).start()
"""

PLAIN = """
import os, time, deepspeed, torch
from datetime import timedelta
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.init_distributed("gloo", verbose=False)
while True:
    torch.distributed.all_reduce(torch.ones(1000))
    with open(f"{os.environ['DS_CAMPAIGN']}/rows-{os.environ['RANK']}", "a") as file:
        file.write("step\\n")
    time.sleep(0.05)
"""


@dataclass
class Row:
    """One event and what came of it. seconds: None when the limit came first."""

    who: str
    event: str
    moment: str
    seconds: float | None
    code: int | None
    left: int
    last_line: str
    steps_lost: int | None = None
    newest: int | None = None

    def __str__(self) -> str:
        took = "never" if self.seconds is None else f"{self.seconds:.1f} s"
        lost = "-" if self.steps_lost is None else str(self.steps_lost)
        return (
            f"{self.who:6}{self.event:20}{self.moment:5} {took:>8}  code {self.code!s:5}"
            f" left {self.left}  lost {lost:>2}  {self.last_line}"
        )


class Scene:
    """One run on the hosts of a cluster."""

    def __init__(self, cluster: Cluster, folder: Path, who: str) -> None:
        self.cluster, self.folder, self.who = cluster, folder, who
        folder.mkdir()
        hostfile = cluster.write_hostfile(SLOTS)
        env = {"DS_CAMPAIGN": str(folder), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        env |= {"PYTHONPATH": f"{folder}:{REPOSITORY}", "WANDB_MODE": "offline"}
        if who == "ours":
            (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
            (folder / "run.json").write_text(json.dumps(self._run()))
            words = ["-m", "ds_llama", "train", "run.json", "--hostfile", str(hostfile)]
        else:
            (folder / "plain.py").write_text(PLAIN)
            (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
            (folder / ".deepspeed_env").write_text(
                "".join(f"{name}={value}\n" for name, value in env.items())
            )
            words = ["-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile), "plain.py"]
        self.err = folder / "err"
        with self.err.open("w") as err:
            settings = {"env": env, "cwd": folder, "stdout": err, "stderr": err}
            self.top = cluster.start(0, sys.executable, *words, **settings)

    def _run(self) -> dict[str, object]:
        from ds_llama.selftest.tiny import MODEL, TOKENS

        return {
            "model": MODEL,
            "data": {"train": str(self.folder.parent / "shard"), "sequence_length": TOKENS},
            "optimizer": {"lr": 1e-3},
            "train": {"steps": 100_000, "global_batch_size": 6, "micro_batch_size": 1},
            "checkpoint": {"every_steps": 30, "keep_last": 2, "export": False},
            "stability": {"hang_timeout_s": HANG_S},
            "deepspeed": "zero2",
            "output": str(self.folder / "out"),
        }

    def wait(self, true: Callable[[], bool], limit_s: float, every_s: float = 0.05) -> bool:
        """Whether it came true in time."""
        deadline = time.monotonic() + limit_s
        while not true():
            if time.monotonic() > deadline:
                return False
            time.sleep(every_s)
        return True

    def is_under_way(self) -> bool:
        """The first steps are made; what is waited for next is a save."""
        if self.who == "plain":
            rows = self.folder / "rows-2"
            return rows.exists() and rows.read_text().count("\n") > 20
        metrics = self.folder / "out/metrics.jsonl"
        return metrics.exists() and metrics.read_text().count("\n") >= 3

    def is_saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return any((self.folder / "out/checkpoints").glob(".staging-*"))

    def processes(self) -> list[psutil.Process]:
        """All of all hosts that are up: nothing but the run is there."""
        hosts = range(self.cluster.count)
        return [process for host in hosts for process in self.cluster.processes(host)]

    def launch_py(self) -> psutil.Process:
        """DeepSpeed's part on the second host."""
        modules = {"ds_llama.launcher.node", "deepspeed.launcher.launch"}
        return next(p for p in self.cluster.processes(1) if modules & set(p.info["cmdline"]))

    def rank(self, rank: int) -> psutil.Process:
        """The process of a rank."""
        hosts = self.cluster.processes(1)
        return next(p for p in hosts if p.environ().get("RANK") == str(rank))

    def tell(self, rank: int, word: str) -> None:
        """See SITECUSTOMIZE."""
        path = self.folder / "told"
        path.write_text(word)
        path.rename(self.folder / f"do-{rank}")

    def signal(self, *signums: int) -> None:
        """To the launcher, one second apart."""
        for number, signum in enumerate(signums):
            time.sleep(1.0 if number else 0)
            self.cluster.signal(self.top, signum)


EVENTS: dict[str, Callable[[Scene], object]] = {
    "rank raises": lambda scene: scene.tell(1, "raise"),
    "rank calls _exit": lambda scene: scene.tell(1, "exit"),
    "rank out of memory": lambda scene: scene.tell(1, "memory"),
    "kill -9 of a rank": lambda scene: scene.rank(1).kill(),
    "rank hangs": lambda scene: scene.rank(1).suspend(),
    "launch.py killed": lambda scene: scene.launch_py().kill(),
    "host crashes": lambda scene: scene.cluster.crash(1),
    "link cut": lambda scene: scene.cluster.link(1, "down"),
    "host powered off": lambda scene: scene.cluster.poweroff(1),
    "SIGINT": lambda scene: scene.signal(signal.SIGINT),
    "SIGINT twice": lambda scene: scene.signal(signal.SIGINT, signal.SIGINT),
    "SIGTERM": lambda scene: scene.signal(signal.SIGTERM),
    "SIGKILL": lambda scene: scene.signal(signal.SIGKILL),
}


def play(folder: Path, who: str, event: str, moment: str, limit_s: float) -> Row:
    """One run, one event, and the end of everything."""
    with Cluster(len(SLOTS), folder / "hosts") as cluster:
        scene = Scene(cluster, folder / "run", who)
        if not scene.wait(scene.is_under_way, START_S):
            return Row(who, event, moment, None, None, 0, "not begun: " + scene.err.read_text())
        if who == "ours":
            scene.wait(lambda: not scene.is_saving(), START_S, 0.002)
            scene.wait(scene.is_saving, START_S, 0.002)
            scene.wait(lambda: moment == "save" or not scene.is_saving(), START_S, 0.002)
        began = time.monotonic()
        EVENTS[event](scene)
        over = scene.wait(
            lambda: scene.top.poll() is not None and not scene.processes(), limit_s, 0.1
        )
        took, left = time.monotonic() - began, scene.processes()
        for process in left:
            process.kill()
        code = scene.top.poll()
        code = 128 - code if code is not None and code < 0 else code
        said = scene.err.read_text().strip().splitlines() or [""]
        row = Row(who, event, moment, took if over else None, code, len(left), said[-1])
        if who == "ours":
            row.newest = newest(scene.folder / "out/checkpoints")
            row.steps_lost = curve(scene.folder / "out")[-1][0] - (row.newest or 0)
        return row


def main() -> int:
    """Run what the command line says; 1 when one of ours was not over within 30 s, or said 0."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--events", default="*", help="patterns of names, as the table has them")
    words.add_argument("--moments", default="rest,save")
    words.add_argument("--who", default="ours,plain")
    words.add_argument("--limit", type=float, default=120.0, help="seconds to wait for deepspeed")
    words.add_argument("--rows", type=Path, help="a file to add a line to for each row")
    words.add_argument("--keep", action="store_true", help="keep the folders of the runs")
    given = words.parse_args()
    from ds_llama.selftest.tiny import TOKENS, VOCAB

    def wanted(event: str) -> bool:
        return any(fnmatchcase(event, pattern) for pattern in given.events.split(","))

    wrong = 0
    for who in given.who.split(","):
        for moment in given.moments.split(",") if who == "ours" else ["rest"]:
            for event in filter(wanted, EVENTS):
                if (event, moment) == ("rank hangs", "save"):
                    continue  # a save may last ten times stability.hang_timeout_s
                folder = Path(tempfile.mkdtemp(prefix="ds-llama-hosts-"))
                with ShardWriter(folder / "shard", vocab_size=VOCAB) as writer:
                    writer.add(np.random.default_rng(0).integers(0, VOCAB, 1000 * TOKENS))
                limit_s = OURS_S if who == "ours" else given.limit
                row = play(folder, who, event, moment, limit_s)
                print(row, flush=True)
                if given.rows is not None:
                    with given.rows.open("a") as rows:
                        rows.write(json.dumps(asdict(row)) + os.linesep)
                late = row.seconds is None or row.seconds > 60 or row.left
                wrong += bool(who == "ours" and (late or row.code == 0))
                if given.keep:
                    print(f"kept: {folder}")
                else:
                    shutil.rmtree(folder)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
