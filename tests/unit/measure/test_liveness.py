"""Ranks that hang, as plain processes: who is named, how soon, and that nobody is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from ds_llama.config.run import StabilityConfig
from ds_llama.measure import pulse
from ds_llama.measure.liveness import SLOW_S, WAITED_S, Place, Watch
from ds_llama.zero import world

TIMEOUT_S = 1.0
RANK = """
import sys, time
from pathlib import Path
from ds_llama.measure import liveness, pulse

liveness._GRACE_S = 0.2
folder, hangs_in = Path(sys.argv[1]), sys.argv[4]
rank, timeout_s, seconds = int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[5])
watch = liveness.Watch(folder, rank, 2, timeout_s)
watch.start()
for step in (1, 2, 3):
    pulse.HERE.at_step(step, first=step == 1)
    for phase in ("data", "forward", "step", "save"):
        with pulse.within(phase):
            time.sleep(0.02)
            if step == 3 and phase == hangs_in and rank == 1:
                print("hangs", flush=True)
                end = time.monotonic() + abs(seconds)
                while time.monotonic() < end:
                    if seconds < 0:  # it is at work
                        pulse.HERE.since = time.monotonic()
                    time.sleep(0.05)  # here
    while step == 3 and rank == 0 and not (folder / "passed").exists():
        time.sleep(0.05)  # as in a collective
    if step == 3 and rank == 1:
        (folder / "passed").touch()
watch.stop()
print("finished", flush=True)
"""
HERE = 1 + next(n for n, line in enumerate(RANK.splitlines()) if line.endswith("# here"))


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def outputs(ranks: list[subprocess.Popen[str]]) -> list[str]:
    """What each said on stderr; the first that ends takes the others with it, as in a launch."""
    while all(process.poll() is None for process in ranks):
        time.sleep(0.01)
    for process in ranks:
        process.terminate()
    return [process.communicate(timeout=30)[1] for process in ranks]


def start(ranks: list[subprocess.Popen[str]], folder: Path, hangs_in: str, seconds: float) -> None:
    folder.mkdir()
    for rank in (0, 1):
        words = [str(folder), str(rank), str(TIMEOUT_S), hangs_in, str(seconds)]
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-c", RANK, *words],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )


def test_who_sleeps_is_named(ranks: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    start(ranks, tmp_path / "ranks", "forward", 60)
    found = outputs(ranks)
    assert 1 in [process.returncode for process in ranks]
    stack, _, said = "".join(reversed(found)).partition("error: ")  # of either rank, once
    assert said.startswith(
        "rank 1 hangs: no progress for 1 s in step 3, forward; rank 0 waits\nwhere: step 3, rank 1"
    )
    assert "remedy: see the stack above for what it waits for; resume from the last" in said
    assert stack.startswith("rank 1 hangs here:\n")
    assert f'File "<string>", line {HERE} in <module>' in stack
    assert "error" not in said


@pytest.mark.parametrize("victim", [0, 1])
def test_who_is_stopped_is_named(
    ranks: list[subprocess.Popen[str]], tmp_path: Path, victim: int
) -> None:
    """Rank 0 judges, or rank 1 in its place; the stopped one is let go on, to its end."""
    start(ranks, tmp_path / "ranks", "step", -20)
    assert ranks[1].stdout is not None
    assert ranks[1].stdout.readline() == "hangs\n"
    os.kill(ranks[victim].pid, signal.SIGSTOP)
    since = time.monotonic()
    found = outputs(ranks)
    assert 1 in [process.returncode for process in ranks]
    assert time.monotonic() - since < 10 * TIMEOUT_S
    [said] = [text for text in found if "error" in text]
    assert f"rank {victim} hangs: no progress for 1 s in step " in said
    assert f"; last heard of there, rank {victim} is stopped, or stuck outside Python\n" in said
    assert found[victim].startswith(f"rank {victim} hangs here:")


def test_a_long_save_is_no_hang(ranks: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    """Nor are two ranks that leave one after the other; nothing stays of the watch."""
    start(ranks, tmp_path / "ranks", "save", 1.5 * TIMEOUT_S)
    for process in ranks:
        out, said = process.communicate(timeout=30)
        assert (process.returncode, out.split()[-1], said) == (0, "finished", "")
    assert [path.name for path in (tmp_path / "ranks").iterdir()] == ["passed"]


def judged(tmp_path: Path, *places: tuple[Place, float]) -> list[int] | None:
    verdict = Watch(tmp_path, 0, len(places), 10.0).judge(dict(enumerate(places)))
    return verdict.hung if verdict is not None else None


def place(beats: int, silent_s: float, collectives: int = 0, **more: object) -> Place:
    common = {"rank": 0, "step": 3, "phase": "forward", "slow": False, "tick": 5}
    return Place(**(common | more), beats=beats, silent_s=silent_s, collectives=collectives)


def test_the_rank_that_is_behind_is_the_one(tmp_path: Path) -> None:
    waits, hangs = place(8, 12.0), place(7, 12.1)
    assert judged(tmp_path, (waits, 0.1), (hangs, 0.1), (waits, 0.1)) == [1]
    assert judged(tmp_path, (waits, 0.1), (place(7, 9.0), 0.1)) is None  # not for long enough
    # in one phase: the one that has begun fewer collectives
    assert judged(tmp_path, (place(8, 12.0, 31), 0.1), (place(8, 12.0, 30), 0.1)) == [1]
    # none is behind: all of them, once all have been there for too long
    assert judged(tmp_path, (place(8, 12.0), 0.1), (place(8, 9.0), 0.1)) is None
    assert judged(tmp_path, (place(8, 12.0), 0.1), (place(8, 11.0), 0.1)) == [0, 1]
    # one whose thread is silent too, whoever is behind
    assert judged(tmp_path, (place(8, 12.0), 0.1), (place(8, 1.0), 11.0)) == [1]


def test_slow_phases_have_longer(tmp_path: Path) -> None:
    ahead = place(9, 11.0)
    for slow, hung in (
        (place(8, SLOW_S - 1, slow=True), None),
        (place(8, SLOW_S + 1, slow=True), [1]),
    ):
        assert judged(tmp_path, (ahead, 0.1), (slow, 0.1)) == hung
    assert judged(tmp_path, (ahead, 0.1), (Place(1), SLOW_S - 1)) is None  # it has not begun
    assert judged(tmp_path, (ahead, 0.1), (Place(1), SLOW_S + 1)) == [1]
    longer = Watch(tmp_path, 0, 1, SLOW_S)
    assert longer.judge({0: (place(8, 9 * SLOW_S, slow=True), 0.0)}) is None
    assert judged(tmp_path, (place(9, 1.0, phase="left"), 99.0), (place(8, 99.0), 0.1)) is None


def test_who_is_waited_for_is_named_before_collectives_give_up(tmp_path: Path) -> None:
    """At the default timeout; ranks that are all at work in one place have ten times as long."""
    default = StabilityConfig().hang_timeout_s
    assert default is not None
    watch = Watch(tmp_path, 0, 2, default)
    assert watch.timeout_s < WAITED_S < world.TIMEOUT.total_seconds()
    slow = place(8, WAITED_S + 1, slow=True)
    for other, hung in ((place(9, 0.0), [1]), (slow, None)):
        verdict = watch.judge({0: (other, 0.1), 1: (slow, 0.1)})
        assert (verdict and verdict.hung) == hung
    stopped = watch.judge({0: (slow, 0.1), 1: (place(8, 1.0, slow=True), WAITED_S)})
    assert stopped is not None
    assert stopped.hung == stopped.stalled == [1]
    assert "no progress for 1500 s" in stopped.error[0]


def test_who_has_stood_still_names_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that was suspended as a whole, and goes on."""
    monkeypatch.setattr(pulse, "HERE", pulse.Pulse())
    watch = Watch(tmp_path, 0, 2, 10.0)
    past = time.monotonic() - 60
    known = place(8, 1.0)
    watch._seen, pulse.HERE.since = {rank: (known, past) for rank in (0, 1)}, past
    for rank in (0, 1):
        watch._path(rank).write_text(json.dumps(asdict(known)))
    assert watch.judge(watch._places()) is not None
    watch._forgive(time.monotonic())
    assert watch.judge(watch._places()) is None
    assert watch._here().silent_s < 1
