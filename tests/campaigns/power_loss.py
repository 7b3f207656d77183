"""The power is lost at every call of a save, in every way that the disk may then have kept it.

    python -m tests.campaigns.power_loss [--seed S] [--most N] [--short]

A process saves checkpoints while every call that changes the disk is recorded (recorded.py). After
each of them, each state that a power loss may leave (disk_model.py) is put on a real disk; the
newest complete checkpoint found there has to be whole, and no older than the last save that had
returned. Then once more after `protocol.recover`.

    saves       five, one of a step that was sealed before; retention removes one: all states
    killed      a save (the first, a second, one of a step again, each with what retention removes)
                killed at each of its calls, another process that recovers, saves and prunes, and
                the power lost at each call of that: all states
    prune       the same, then `ds-llama checkpoint prune`
    damaged     a resume that sets a damaged checkpoint aside and saves its step anew, killed at
                each call, and the next resume
    engine      three saves of a real engine on two ranks, stage 3: at most N states a call, drawn
    background  the same, written by threads

Beside them the twins that must lose something: without any fsync, without those of files, and
without those of folders. Prints a line each, with the number of states; exits with 1 when a save
loses anything, or a twin nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pickle
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ds_llama.commit import disk, listing, manifest, names, protocol
from ds_llama.commit.manifest import Entry
from ds_llama.commit.retention import prune
from ds_llama.commit.verify import summary, verify
from tests.campaigns.disk_model import Disk, State, build
from tests.campaigns.recorded import Killed, Op, Recorder

SMALL = 1 << 14  # states a call up to which all are visited
TWIN = 20  # drawn of a twin's
History = tuple[list[Op], int]  # calls, and from which on the power is lost
WITHOUT: dict[str, Callable[[Op], bool]] = {
    "any fsync": lambda op: op.kind in ("sync", "sync_folder"),
    "fsync of files": lambda op: op.kind == "sync",
    "fsync of folders": lambda op: op.kind == "sync_folder",
}


@dataclass
class Row:
    """What came of one kind of history."""

    name: str
    must_lose: bool = False
    damaged: bool = False  # one looks complete and is not; a resume passes it over
    histories: int = 0
    calls: int = 0
    states: int = 0
    lost: int = 0
    example: str = ""
    all_states: bool = True
    seen: set[int] = field(default_factory=set)

    @property
    def failed(self) -> bool:
        """A loss where none may be, or a twin that lost nothing."""
        return self.must_lose != (self.lost > 0)

    def __str__(self) -> str:
        kind = "all" if self.all_states else "drawn"
        example = f"  {self.example}" if self.example else ""
        wrong = "  WRONG" if self.failed else ""
        return (
            f"{self.name:40}{self.histories:9}{self.calls:8}{self.states:9} {kind:5}"
            f"{self.lost:7}{wrong}{example}"
        )


# --- what is recorded ------------------------------------------------------------------------


def save(root: Path, step: int, keep_last: int, text: str = "", recorder: Recorder | None = None):
    """What `checkpoint.save` does to the disk, with a few bytes in place of each shard."""
    name = names.step_name(step)
    staged = protocol.begin(root, name)
    files: list[Entry] = []
    for rank in range(2):
        shard = staged / f"rank_{rank}.pt"
        disk.write(shard, f"{text} {step} {rank} ".encode() * 20)
        size, digest = shard.stat().st_size, manifest.sha256(shard)
        files.append({"path": shard.name, "size": size, "sha256": digest, "rank": rank})
    swapped = staged / "offloaded_tensors" / "rank01" / "0.swp"  # by somebody else's code
    swapped.parent.mkdir(parents=True)
    swapped.write_bytes(f"{text} {step} swapped ".encode() * 20)
    files += manifest.entries(staged, [swapped], rank=1)
    disk.write(staged / "state.json", b'{"step": %d}' % step)
    files += manifest.entries(staged, ["state.json"])
    protocol.seal(root, name, files, {"step": step, "world_size": 2, "stage": 3})
    if recorder is not None:
        recorder.mark(step)
    prune(root, keep_last)


def saves(folder: Path, steps: int = 4) -> Iterator[History]:
    """One history: each step, and the last once more."""
    with Recorder(folder).active() as recorder:
        for step in range(1, steps + 1):
            save(folder / "checkpoints", step, steps - 1, "a", recorder)
        save(folder / "checkpoints", steps, steps - 1, "b", recorder)
    yield recorder.ops, 0


Work = Callable[[Path, Recorder], object]  # what a process does in a checkpoints folder


def at_each_call(
    folder: Path, before: Work, work: Work, then: Work, every: int
) -> Iterator[History]:
    """A history for each call at which `work` is killed and `then` follows; the last is not."""
    folder.mkdir()
    (folder / "before").mkdir()
    with Recorder(folder / "before").active() as first:
        before(folder / "before" / "checkpoints", first)
    for call in range(every // 2, 1000, every):
        place, finished = folder / str(call), True
        shutil.copytree(folder / "before", place)
        recorder = Recorder(place, kill_at=call, ops=[*first.ops])
        try:
            with recorder.active():
                work(place / "checkpoints", recorder)
        except Killed:
            finished = False
        start = len(recorder.ops)
        with replace(recorder, kill_at=None).active() as second:
            then(place / "checkpoints", second)
        shutil.rmtree(place)
        yield second.ops, start
        if finished:
            return


def killed(folder: Path, then: Work, every: int = 1) -> Iterator[History]:
    """The first save, a second, and one of a step that was sealed before."""
    for name, saved, step in (("first", 0, 1), ("second", 1, 2), ("again", 1, 1)):
        yield from at_each_call(
            folder / name,
            lambda root, recorder, saved=saved: saved and save(root, saved, 1, "a", recorder),
            lambda root, recorder, step=step: save(root, step, 1, "b", recorder),
            then,
            every,
        )


def goes_on(root: Path, recorder: Recorder) -> None:
    """The next run: it puts right what was left, saves, and prunes."""
    if root.is_dir():
        protocol.recover(root)
    save(root, 3, 1, "c", recorder)


def pruned(root: Path, recorder: Recorder) -> None:
    """What `ds-llama checkpoint prune` does."""
    if root.is_dir():
        protocol.recover(root)
        prune(root, 1)


def damaged(folder: Path, every: int = 1) -> Iterator[History]:
    """The newest of two has other content; a resume takes the one before it, and goes on."""
    from ds_llama.checkpoint.choose import choose

    def before(root: Path, recorder: Recorder) -> None:
        save(root, 1, 2, "a", recorder)
        save(root, 2, 2, "a", recorder)
        disk.write(root / names.step_name(2) / "rank_0.pt", b"a 2 9 " * 20)
        recorder.mark(1)

    def resumed(root: Path, recorder: Recorder, text: str) -> None:
        with contextlib.redirect_stderr(io.StringIO()):
            chosen = choose(root, "auto")
        assert chosen is not None
        assert "damaged" not in chosen.name
        save(root, 2, 1, text, recorder)

    yield from at_each_call(
        folder / "newest",
        before,
        lambda root, recorder: resumed(root, recorder, "b"),
        lambda root, recorder: resumed(root, recorder, "c"),
        every,
    )


def engine(folder: Path) -> Iterator[History]:
    """One history: what both ranks of a real engine did, merged by time."""
    from tests.distributed import world

    words = ("--module", "tests.campaigns.power_loss", "--rank", str(folder))
    code = world.start(2, folder / "launch", *words)
    if code:
        raise SystemExit((folder / "launch" / "log.txt").read_text()[-4000:])
    ops = [op for file in folder.glob("ops-*") for op in pickle.loads(file.read_bytes())]
    yield sorted(ops, key=lambda op: op.at_ns), 0


def record_engine(folder: Path) -> None:
    """As one rank: three saves, of which retention removes the oldest."""
    import torch

    from ds_llama.checkpoint import save as saving
    from ds_llama.checkpoint.background import Background
    from ds_llama.trainer.build import construct
    from ds_llama.zero import world
    from ds_llama.zero.register import register
    from tests.distributed.runs import make_run

    world.join()
    train = {"steps": 4, "seed": 0, "micro_batch_size": 2, "global_batch_size": 4}
    run = make_run(folder / "run", world=2, micro_batch_size=2, stage=3, train=train)
    ready = register(construct(run), run)
    base, background = folder / "disk", Background()
    base.mkdir(exist_ok=True)
    with Recorder(base).active() as recorder:
        for step in (1, 2, 3):
            state = {"step": step, "tokens_seen": 0, "samples_seen": 0}
            given = (ready, base / "checkpoints", step, state, ready.ds_llama.resolved)
            if folder.name == "background":
                background.save(*given, keep_last=2)
                background.finish()
            else:
                saving.save(*given)
            if world.rank() == 0:
                recorder.mark(step)
                prune(base / "checkpoints", 2)
    (folder / f"ops-{world.rank()}").write_bytes(pickle.dumps(recorder.ops))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


# --- what is checked -------------------------------------------------------------------------


def lose_power(row: Row, history: History, place: Path, most: int, draw: random.Random) -> None:
    """Visit every state of a history that this row has not seen yet; a twin stops at a loss."""
    ops, start = history
    found, committed = Disk(), 0
    row.histories += 1
    for index, op in enumerate(ops):
        found.apply(op)
        committed = op.step if op.kind == "mark" else committed
        if index + 1 < start:
            continue
        row.calls += 1
        for state, complete in found.states(most, draw):
            row.all_states &= complete
            key = hash((state, committed))
            if key in row.seen:
                continue
            row.seen.add(key)
            row.states += 1
            problem = judge(state, committed, place, damaged=row.damaged)
            if problem is not None:
                row.lost += 1
                row.example = row.example or f"after {op.kind} {op.path}: {problem}"
                if row.must_lose:
                    return


def judge(state: State, committed: int, place: Path, *, damaged: bool = False) -> str | None:
    """What is wrong with a state after which the save of step `committed` had returned.

    damaged: that a checkpoint looks complete and is not is no loss while another one is.
    """
    disk_folder, store = place / "found", place / "store"
    disk_folder.mkdir()
    store.mkdir(exist_ok=True)
    try:
        build(state, disk_folder, store)
        root = disk_folder / "checkpoints"
        problem = _lost(root, committed, damaged=damaged)
        if problem is None and any(names.is_unfinished(path.name) for path in root.glob(".*")):
            protocol.recover(root)
            problem = _lost(root, committed, damaged=damaged)
        return problem
    finally:
        shutil.rmtree(disk_folder)


def _lost(root: Path, committed: int, *, damaged: bool) -> str | None:
    whole: list[int] = []
    for checkpoint in listing.checkpoints(root):
        problems = verify(checkpoint.path) if checkpoint.complete else []
        if problems and not damaged:
            return f"{checkpoint.name} counts as complete, but {summary(problems)}"
        if checkpoint.complete and not problems:
            whole.append(checkpoint.step)
    if max(whole, default=0) >= committed:
        return None
    return f"{committed} was committed, whole is {whole or 'none'}"


def campaign(folder: Path, seed: int, most: int, *, short: bool) -> Iterator[Row]:
    """A row for each kind of history, and for each of its twins."""
    every = 60 if short else 1
    kinds: dict[str, tuple[Callable[[Path], Iterator[History]], int]] = {
        "saves": (lambda place: saves(place, 2 if short else 4), SMALL),
        "killed": (lambda place: killed(place, goes_on, every), SMALL),
        "prune": (lambda place: killed(place, pruned, every), SMALL),
    }
    if not short:
        kinds["damaged"] = (damaged, SMALL)
        kinds["engine"] = (engine, most)
        kinds["background"] = (engine, most)
    for name, (record, limit) in kinds.items():
        place = folder / name
        place.mkdir()
        histories = [*record(place)]
        row = Row(name, damaged=name == "damaged")
        for history in histories:
            lose_power(row, history, place, limit, random.Random(seed))
        yield row
        if name in ("saves", "engine", "background"):
            for without, dropped in WITHOUT.items():
                yield _twin(f"{name} without {without}", histories, dropped, place, seed)


def _twin(
    name: str,
    histories: list[History],
    dropped: Callable[[Op], bool],
    place: Path,
    seed: int,
) -> Row:
    row = Row(name, must_lose=True)
    for ops, start in histories:
        kept = [op for op in ops if not dropped(op)]
        first = start - sum(dropped(op) for op in ops[:start])
        lose_power(row, (kept, first), place, TWIN, random.Random(seed))
        if row.lost:
            break
    return row


def main() -> int:
    """Run what the command line says and print the table."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--most", type=int, default=40, help="states a call of the engine's saves")
    words.add_argument("--short", action="store_true")
    given = words.parse_args()
    memory = Path("/dev/shm")
    began, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory(
        prefix="ds-llama-power-", dir=memory if os.access(memory, os.W_OK) else None
    ) as folder:
        print(f"{'':40}{'histories':>9}{'calls':>8}{'states':>9} {'':5}{'lost':>7}")
        for row in campaign(Path(folder), given.seed, given.most, short=given.short):
            print(row, flush=True)
            rows.append(row)
    states = sum(row.states for row in rows if not row.must_lose)
    lost = sum(row.lost for row in rows if not row.must_lose)
    print(f"{states} states, {lost} lost; {time.perf_counter() - began:.1f} s")
    return int(any(row.failed for row in rows))


if __name__ == "__main__":
    arguments = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    if arguments[:1] == ["--rank"]:
        record_engine(Path(arguments[1]))
    else:
        sys.exit(main())
