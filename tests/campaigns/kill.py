"""Runs killed at random moments and taken up again until they end, beside runs that were not.

    python -m tests.campaigns.kill [--trials N] [--inside SHARE] [--seed S] [--cells PATTERN]

Every trial is `ds-llama train RUN --nproc 2 --resume auto` under the deepspeed launcher, saving
after every step, and one kill -9: of one rank, of all of them, or of the launcher (`ds-llama
train`, DeepSpeed's runner or its launch.py). SHARE of the kills are aimed into a save: the driver
waits for a save to begin, and then for a random part of the time that one takes; the others come
at any moment of the launch. Some cells save in the background. After each kill

    no process of the launch is alive, and the launch did not end in 0;
    the newest complete checkpoint is the one that it was at the kill, or a newer one, and every one
    that counts as complete has the content that its manifest says;
    the next launch goes on from it;

and a run that came to its end after all its kills has the rows of metrics.jsonl (losses, norms,
learning rates, tokens) and the checksums of weights, masters and moments of the run that was never
killed, bit for bit. A kill that comes too late, to a launch that then ends in 0, is none: what it
left is judged as that of a run that has ended, at the moment it says 0, and the trial is repeated.
Prints a line a trial, then a table; exits with 1 if anything was lost.

Processes are forked from this one after its imports (warm.py), and are else what they always are.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ds_llama.commit import listing, names
from ds_llama.commit.verify import summary, verify
from ds_llama.data import ShardWriter
from ds_llama.selftest.cells import Cell
from ds_llama.tracking.jsonl import read_rows
from tests.campaigns import warm
from tests.campaigns.launched import GONE_S, Launch, adopt_orphans

STEPS = 8
CELLS = (
    *(Cell("bf16", 1), Cell("fp32", 2), Cell("bf16", 3), Cell("fp32", 3, "optimizer")),
    *(Cell("bf16", 2, "optimizer"), Cell("fp32", 1), Cell("bf16", 2), Cell("fp32", 3)),
    Cell("bf16", 3, "optimizer"),
)
IN_BACKGROUND = (Cell("bf16", 2, "optimizer"), Cell("fp32", 3), Cell("bf16", 3))
VICTIMS = ("one rank", "all ranks", "launcher")
SLOW_S = 10.0
_GOING_ON = "going on from step-"
# What a row of metrics.jsonl says of the training itself: the rest is time and memory.
EXACT = ("loss", "perplexity", "lr", "grad_norm", "clip_coef", "skipped", "tokens_seen")


@dataclass
class Trial:
    """One kill and what came of it; `wrong` is empty when nothing was lost."""

    cell: str
    victim: str
    inside: bool
    before: int | None
    after: int | None
    gone_s: float | None
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        where = "in a save" if self.inside else "elsewhere"
        gone = "never" if self.gone_s is None else f"{self.gone_s:4.1f} s"
        return (
            f"{self.cell:28}{self.victim:16}{where:10} newest {self.before or '-':>3}, found"
            f" {self.after or '-':>3}, gone in {gone}  {'; '.join(self.wrong)}"
        )


def curve(output: Path) -> list[list[Any]]:
    """What metrics.jsonl says of each step, times and memory left out."""
    return [
        [row["step"], *(row[key] for key in EXACT)] for row in read_rows(output / "metrics.jsonl")
    ]


def damaged(root: Path) -> list[str]:
    """Checkpoints that count as complete and are not what was saved."""
    return [
        f"{found.name}: {summary(problems)}"
        for found in listing.checkpoints(root)
        if found.complete and (problems := verify(found.path))
    ]


def newest(root: Path) -> int | None:
    """The step of the newest complete checkpoint."""
    found = listing.latest_complete(root)
    return found.step if found else None


@dataclass
class Story:
    """A cell's runs: the one that is never killed, and those that are, one after the other."""

    cell: Cell
    folder: Path
    background: bool = False
    ended: int = 0
    late: int = 0
    save_s: float = 0.0
    launch_s: float = 0.0
    wrong: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Precision, stage, offload, and how it saves."""
        offload = "" if self.cell.offload == "none" else f"+{self.cell.offload}"
        background = " background" if self.background else ""
        return f"{self.cell.precision} {self.cell.stage}{offload}{background}"

    @property
    def output(self) -> Path:
        """The run that is being killed now."""
        return self.folder / f"killed-{self.ended}"

    def begin(self) -> None:
        """Train without a kill, and learn how long a save and a launch take."""
        from ds_llama.selftest.tiny import MODEL, TOKENS

        self.folder.mkdir()
        run = {
            "model": MODEL,
            "data": {"train": str(self.folder.parent / "shard"), "sequence_length": TOKENS},
            "optimizer": {"lr": 1e-2, "warmup_steps": 3},
            "train": {"steps": STEPS, "global_batch_size": 4, "micro_batch_size": 1},
            "checkpoint": {
                **{"every_steps": 1, "keep_last": 2, "export": False},
                "background": self.background,
            },
            "deepspeed": self.cell.deepspeed(),
        }
        (self.folder / "run.json").write_text(json.dumps(run))
        launch, saves = Launch(self.folder / "run.json", self.folder / "whole"), []
        while launch.wait(launch.is_saving):
            began = time.monotonic()
            launch.wait(lambda: not launch.is_saving())
            saves.append(time.monotonic() - began)
        if launch.ended() or len(curve(self.folder / "whole")) != STEPS:
            raise SystemExit(f"{self.name} did not finish: {launch.log.read_text()[-3000:]}")
        self.launch_s, self.save_s = time.monotonic() - launch.began, statistics.median(saves)

    def trial(self, kind: str, inside: bool, draw: random.Random) -> Trial | None:
        """Launch and kill; None when the run came to its end before the kill, or in spite of it."""
        expected = newest(self.output / "checkpoints")
        launch = Launch(self.folder / "run.json", self.output)
        victim, processes = "", list[psutil.Process]()
        if self._wait_for_the_moment(launch, inside, draw):
            with suppress(psutil.NoSuchProcess):
                victim, processes = launch.victims(kind, draw)
        if not processes:
            self._judge_the_end(launch, expected)
            return None
        before, saving = newest(launch.root), launch.is_saving()
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
        killed = time.monotonic()
        launch.wait(launch.read_orphans, GONE_S)
        if launch.child.returncode == 0:
            # Whoever was killed had nothing left to do. What it says is done has to be done now,
            # and not by processes that it left behind.
            self._judge_the_end(launch, expected)
            self.late += 1
            if launch.gone_after(killed) is None:
                self.wrong.append(f"{self.name}: processes were left by a run that had ended")
            return None
        gone_s = launch.gone_after(killed)
        after = newest(launch.root)
        trial = Trial(self.name, victim, saving, before, after, gone_s)
        trial.wrong += _went_on(launch, expected) + damaged(launch.root)
        if gone_s is None:
            trial.wrong.append(f"processes were left {GONE_S:g} s later")
        elif gone_s > SLOW_S:
            print(f"gone in {gone_s:.1f} s: {launch.log.read_text()[-3000:]}", flush=True)
        if (after or 0) < (before or 0):
            trial.wrong.append(f"step {before} was lost")
        return trial

    def finish(self) -> None:
        """Let the run that is being killed come to its end."""
        expected = newest(self.output / "checkpoints")
        self._judge_the_end(Launch(self.folder / "run.json", self.output), expected)

    def _wait_for_the_moment(self, launch: Launch, inside: bool, draw: random.Random) -> bool:
        if not inside:
            launch.wait(limit_s=draw.uniform(0, self.launch_s))
            return launch.child.poll() is None
        for _ in range(draw.randint(1, 3)):
            launch.wait(lambda: not launch.is_saving())
            launch.wait(launch.is_saving)
        time.sleep(draw.uniform(0, self.save_s))
        return launch.child.poll() is None

    def _judge_the_end(self, launch: Launch, expected: int | None) -> None:
        code, whole = launch.ended(), self.folder / "whole"
        wrong = _went_on(launch, expected)
        if code:
            wrong.append(f"exit code {code}: {launch.log.read_text()[-3000:]}")
        elif newest(launch.root) != STEPS:
            wrong.append(f"it ended in 0 with step {newest(launch.root)} as its newest")
        elif curve(self.output) != curve(whole):
            wrong.append("the loss curve is another one")
        elif _sums(self.output) != _sums(whole):
            wrong.append("weights, masters or moments are others")
        self.ended += 1
        self.wrong += [f"{self.name}: {what}" for what in wrong]


def _went_on(launch: Launch, expected: int | None) -> list[str]:
    """What is wrong with where a launch began; nothing is, if it was killed before it said so."""
    text = launch.log.read_text(errors="replace")
    said = [line.split()[3].rstrip(";,") for line in text.splitlines() if _GOING_ON in line]
    if said and said != [names.step_name(expected or 0)]:
        return [f"went on from {said}, newest was {expected}"]
    return []


def _sums(output: Path) -> Any:
    found = listing.latest_complete(output / "checkpoints")
    assert found is not None, output
    return json.loads((found.path / "state.json").read_bytes())["checksums"]


def campaign(
    folder: Path, trials: int, share: float, seed: int, pattern: str
) -> tuple[list[Trial], list[Story]]:
    """All trials, at least `share` of them inside a save, and what came of each cell's runs."""
    from ds_llama.selftest.tiny import TOKENS, VOCAB

    with ShardWriter(folder / "shard", vocab_size=VOCAB) as writer:
        writer.add(np.random.default_rng(seed).integers(0, VOCAB, 8 * STEPS * TOKENS))
    draw, made = random.Random(seed), list[Trial]()
    kinds = [*product(CELLS, [False]), *product(IN_BACKGROUND, [True])]
    stories = [Story(c, folder / str(index), b) for index, (c, b) in enumerate(kinds)]
    stories = [story for story in stories if fnmatchcase(story.name, pattern)]
    for story in stories:
        story.begin()
        print(f"{story.name:28} {story.launch_s:.1f} s, a save {story.save_s:.3f} s", flush=True)
    aimed = round(trials * share)
    while len(made) < trials or sum(trial.inside for trial in made) < aimed:
        inside = sum(trial.inside for trial in made) < aimed * (len(made) + 1) / trials
        story = stories[len(made) % len(stories)]
        trial = story.trial(VICTIMS[len(made) // len(stories) % 3], inside, draw)
        if trial is not None:
            made.append(trial)
            print(f"{len(made):4} {trial}", flush=True)
    for story in stories:
        story.finish()
    return made, stories


def table(trials: Sequence[Trial], stories: Sequence[Story]) -> str:
    """A line a kind of victim, then the cells, then what was lost."""
    lines = [f"{'killed':28}{'in a save':>10}{'elsewhere':>10}{'wrong':>7}"]
    for victim in sorted({trial.victim for trial in trials}):
        own = [trial for trial in trials if trial.victim == victim]
        inside, wrong = sum(t.inside for t in own), sum(bool(t.wrong) for t in own)
        lines.append(f"{victim:28}{inside:10}{len(own) - inside:10}{wrong:7}")
    for story in stories:
        kills = sum(trial.cell == story.name for trial in trials)
        result = "bit for bit" if not story.wrong else "; ".join(story.wrong)
        ended = f"{story.ended:2} runs to the end, {story.late} before the kill"
        lines.append(f"{story.name:28}{kills:4} kills, {ended}: {result}")
    inside = sum(trial.inside for trial in trials)
    lost = sum(bool(t.wrong) for t in trials) + sum(bool(story.wrong) for story in stories)
    gone = [trial.gone_s for trial in trials if trial.gone_s is not None]
    lines.append(f"all processes gone after {max(gone, default=0):.1f} s at most")
    return "\n".join([*lines, f"{len(trials)} kills, {inside} inside a save, {lost} lost"])


def main() -> int:
    """Run what the command line says and print the table."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--trials", type=int, default=72)
    words.add_argument("--inside", type=float, default=0.75, help="share of kills inside a save")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--cells", default="*", help="pattern of names, as the table has them")
    given = words.parse_args()
    os.environ |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    warm.install()
    adopt_orphans()
    folder = Path(tempfile.mkdtemp(prefix="ds-llama-kill-"))
    trials, stories = campaign(folder, given.trials, given.inside, given.seed, given.cells)
    print(table(trials, stories))
    if any(trial.wrong for trial in trials) or any(story.wrong for story in stories):
        print(f"kept: {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
