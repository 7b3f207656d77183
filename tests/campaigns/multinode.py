"""What ends a run over two hosts, and how long that takes: every event, under real training.

    python -m tests.campaigns.multinode [--events PATTERN,…] [--moments start,rest,save]
        [--who ours,plain] [--limit SECONDS] [--rows FILE]
    python -m tests.campaigns.multinode --rows FILE --table

Each event is `ds-llama train RUN --hostfile H` over two hosts in namespaces with one and two ranks
(tests/multinode/cluster.py), and something that is done to it: before it is started (`start`),
between two saves (`rest`) or once one has begun (`save`). Prints, and adds to --rows as JSON, a row
each: seconds until the launcher has ended and nothing of the run lives on any host that can still
be reached, its exit code, processes left, its last line, and the steps that a restart would make
again: those made since the checkpoint that it goes on from. A row that is in --rows is not played
again. --table prints the rows of the file as docs/multinode.md has them.

`plain` does the same to `deepspeed --hostfile H` (DeepSpeed's own launcher, pdsh) and a script that
trains, saves and knows nothing of ds_llama; --limit says how long its end is waited for.
"""

from __future__ import annotations

import argparse
import json
import os
import re
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

from ds_llama.data import ShardWriter
from tests.campaigns.multinode_scene import REPOSITORY, START_S, Scene
from tests.campaigns.multinode_table import Row, table
from tests.multinode.cluster import Cluster

OURS_S = 90.0
STEPS_ON = 10  # a run that makes so many steps more has not been ended


def _mount(scene: Scene, *words: str) -> None:
    """On the second host alone."""
    done = scene.cluster.run(1, "mount", *words)
    assert done.returncode == 0, done.stderr


def _change(scene: Scene, path: Path, text: str) -> None:
    other = scene.folder / f"other-{path.name}"
    other.write_text(text)
    _mount(scene, "--bind", str(other), str(path))


def _no_python(scene: Scene) -> None:
    _mount(scene, "-t", "tmpfs", "tmpfs", str(Path(sys.executable).parent))


def _other_version(scene: Scene) -> None:
    from importlib import metadata

    path = Path(str(metadata.distribution("torch").locate_file("torch/version.py")))
    _change(
        scene, path, re.sub(r"(?m)^__version__ = .*", "__version__ = '2.12.1'", path.read_text())
    )


def _other_code(scene: Scene) -> None:
    """A learning rate, say, that somebody has tried."""
    ours, plain = REPOSITORY / "ds_llama/trainer/loop.py", scene.folder / "plain.py"
    path = ours if scene.who == "ours" else plain
    _change(scene, path, path.read_text() + "# tried something\n")


def _full_disk(scene: Scene) -> None:
    folder = scene.folder / "extensions"
    folder.mkdir()
    scene.env["TORCH_EXTENSIONS_DIR"] = str(folder)
    _mount(scene, "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder))


def _unknown_name(scene: Scene) -> None:
    scene.hostfile.write_text(scene.hostfile.read_text().replace("node1", "nowhere"))


def _take_port(scene: Scene) -> None:
    """DeepSpeed's default."""
    code = "import socket, time; s = socket.create_server(('', 29500)); time.sleep(3600)"
    scene.cluster.start(0, sys.executable, "-c", code)
    listening = ("ss", "-ltnH", "sport = :29500")
    assert scene.wait(lambda: bool(scene.cluster.run(0, *listening).stdout), 60)


# Done before the run is started.
BEFORE: dict[str, Callable[[Scene], object]] = {
    "key refused": lambda scene: scene.cluster.refuse_key(1),
    "host key unknown": lambda scene: scene.cluster.forget_host_key(1),
    "name unknown": _unknown_name,
    "no Python": _no_python,
    "other version": _other_version,
    "other code": _other_code,
    "disk full": _full_disk,
    "port taken": _take_port,
}
UNREACHABLE = ("key refused", "host key unknown", "name unknown", "no Python")
# Done while it trains.
DURING: dict[str, Callable[[Scene], object]] = {
    "rank raises": lambda scene: scene.tell(1, "raise"),
    "rank out of memory": lambda scene: scene.tell(1, "memory"),
    "rank calls _exit": lambda scene: scene.tell(1, "exit"),
    "kill -9 of a rank": lambda scene: scene.rank(1).kill(),
    "rank hangs": lambda scene: scene.rank(1).suspend(),
    "launch.py killed": lambda scene: scene.launch_py().kill(),
    "host crashes": lambda scene: scene.cluster.crash(1),
    "link cut": lambda scene: scene.cluster.link(1, "down"),
    "host powered off": lambda scene: scene.cluster.poweroff(1),
    "SIGINT": lambda scene: scene.signal(signal.SIGINT),
    "SIGINT twice": lambda scene: scene.signal(signal.SIGINT, signal.SIGINT),
    "SIGTERM": lambda scene: scene.signal(signal.SIGTERM),
    "SIGUSR1": lambda scene: scene.signal(signal.SIGUSR1),
    "SIGKILL": lambda scene: scene.signal(signal.SIGKILL),
}
# Ctrl-C to one of two runs on the same hosts.
BESIDE = "Ctrl-C beside a run"


@dataclass(frozen=True)
class Cell:
    """One event at one moment. limit_s: how long the end is waited for."""

    who: str
    event: str
    moment: str
    limit_s: float

    def play(self, folder: Path) -> Row:
        """One run, one event, and the end of everything."""
        slots = (1, 1) if self.event == BESIDE else (1, 2)
        with Cluster(2, folder / "hosts") as cluster:
            scene = Scene(cluster, folder / "run", self.who, slots)
            if self.event == BESIDE:
                return self._beside(scene, Scene(cluster, folder / "other", self.who, slots))
            if self.event in BEFORE:
                return self._before(scene)
            return self._during(scene)

    def _before(self, scene: Scene) -> Row:
        BEFORE[self.event](scene)
        others = len(scene.processes())
        scene.start()
        began = time.monotonic()
        never = self.event in UNREACHABLE  # it can but hang
        limit_s = self.limit_s if never else max(self.limit_s, START_S)
        scene.wait(
            lambda: (
                scene.steps() > STEPS_ON or (scene.is_over() and len(scene.processes()) <= others)
            ),
            limit_s,
        )
        took = time.monotonic() - began if scene.is_over() else None
        left = 0 if took or scene.steps() > STEPS_ON else len(scene.processes()) - others
        said = f"it trains: step {scene.steps()}" if scene.steps() > STEPS_ON else scene.mistake()
        return Row(self.who, self.event, self.moment, took, scene.code(), left, said)

    def _during(self, scene: Scene) -> Row:
        scene.start()
        if not scene.wait_for(self.moment):
            return self._not_begun(scene)
        began = time.monotonic()
        DURING[self.event](scene)
        over = scene.wait(lambda: scene.is_over() and not scene.processes(), self.limit_s, 0.1)
        took, left = time.monotonic() - began, scene.processes()
        row = Row(self.who, self.event, self.moment, took if over else None, scene.code())
        row.left, row.last_line = len(left), scene.said()
        for process in left:
            process.kill()
        row.resumes_at = scene.resumes_at()
        row.steps_lost = None if row.resumes_at is None else scene.steps() - row.resumes_at
        return row

    def _beside(self, scene: Scene, other: Scene) -> Row:
        """What becomes of the other one is the row's last line."""
        other.start(29501)
        if not other.wait(lambda: other.steps() > 3 or other.is_over(), START_S):
            return self._not_begun(other)
        scene.start()
        if not scene.wait(lambda: scene.steps() > 3 or scene.is_over(), START_S):
            return self._not_begun(scene)
        before, began = other.steps(), time.monotonic()
        scene.signal(signal.SIGINT)
        over = scene.wait(
            lambda: scene.is_over() and not scene.processes(own=True), self.limit_s, 0.1
        )
        took = time.monotonic() - began
        other.wait(lambda: other.is_over() or other.steps() > before + STEPS_ON, START_S)
        made, code = other.steps() - before, other.code()
        said = f"the other made {made} more steps"
        said += "" if code is None else f" and ended with exit code {code}"
        left = len(scene.processes(own=True))
        return Row(
            self.who, self.event, self.moment, took if over else None, scene.code(), left, said
        )

    def _not_begun(self, scene: Scene) -> Row:
        said = "not begun: " + scene.err.read_text(errors="replace")
        return Row(self.who, self.event, self.moment, None, scene.code(), 0, said)


def cells(who: str, moments: str, limit_s: float) -> list[Cell]:
    """All of them."""
    found = []
    for each in who.split(","):
        limit = OURS_S if each == "ours" else limit_s
        for moment in moments.split(","):
            names = list(BEFORE) if moment == "start" else list(DURING)
            names += [BESIDE] if moment == "rest" else []
            found += [Cell(each, name, moment, limit) for name in names]
    return found


def main() -> int:
    """Run what the command line says; 1 when one of ours was not over within 90 s, or said 0."""
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--events", default="*", help="patterns of names, as the table has them")
    words.add_argument("--moments", default="start,rest,save")
    words.add_argument("--who", default="ours,plain")
    words.add_argument("--limit", type=float, default=40.0, help="seconds to wait for deepspeed")
    words.add_argument("--rows", type=Path, help="a file to add a line to for each row")
    words.add_argument("--table", action="store_true", help="print the rows of that file")
    words.add_argument("--keep", action="store_true", help="keep the folders of the runs")
    given = words.parse_args()
    rows = given.rows.read_text().splitlines() if given.rows and given.rows.exists() else []
    known = [Row(**json.loads(line)) for line in rows]
    if given.table:
        print(table(known, [*BEFORE, *DURING, BESIDE]))
        return 0
    played = {(row.who, row.event, row.moment) for row in known}
    patterns, wrong = given.events.split(","), 0
    for cell in cells(given.who, given.moments, given.limit):
        wanted = any(fnmatchcase(cell.event, pattern) for pattern in patterns)
        if not wanted or (cell.who, cell.event, cell.moment) in played:
            continue
        folder = Path(tempfile.mkdtemp(prefix="ds-llama-hosts-"))
        _write_shard(folder)
        row = cell.play(folder)
        print(row, flush=True)
        if given.rows is not None:
            with given.rows.open("a") as file:
                file.write(json.dumps(asdict(row)) + os.linesep)
        wrong += row.is_wrong
        if given.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder)
    return 1 if wrong else 0


def _write_shard(folder: Path) -> None:
    from ds_llama.selftest.tiny import TOKENS, VOCAB

    with ShardWriter(folder / "shard", vocab_size=VOCAB) as writer:
        writer.add(np.random.default_rng(0).integers(0, VOCAB, 1000 * TOKENS))


if __name__ == "__main__":
    sys.exit(main())
