"""`ds-llama data prepare` killed at random moments until it ends, beside one that never was.

    python -m tests.campaigns.prepare_kills [--stories N] [--mib M] [--seed S]

A story is one folder: the same call again and again, each with a number of workers drawn anew,
each but the last ended by kill -9 of the parent at a random moment of the time that the whole
takes. Half of the stories deduplicate. After each kill the workers end by themselves, and a
manifest, if there is one, vouches for what is there. At the end of a story each file has the bytes
of a prepare that was never killed, by one worker. Prints a line a story; exits with 1 if any byte
differs.

Batches are small and the journal is written with each, so that kills find the work in many states.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from ds_llama.data.prepare import MANIFEST, share_done
from ds_llama.data.tokenizer import train_tokenizer

GONE_S = 60.0
# `paused` batches after the beginning it stands still, so that it can be killed right there.
PROGRAM = """
import sys, time
from ds_llama.cli.main import main
from ds_llama.data import output, reading
every_s, characters, paused = map(float, sys.argv[1:4])
output._JOURNAL_EVERY_S, reading._BATCH_CHARACTERS = every_s, characters
append = output.Output.append
def append_and_pause(self, *given):
    global paused
    append(self, *given)
    paused -= 1
    if not paused:
        print("paused", flush=True)
        time.sleep(600)
output.Output.append = append_and_pause
sys.exit(main(["data", "prepare", *sys.argv[4:]]))
"""


@dataclass
class Call:
    """One prepare as a process of its own, at the head of a process group."""

    words: Sequence[str]
    every_s: float = 0.0
    characters: int = 1 << 16
    paused: int = 0

    def start(self) -> subprocess.Popen[str]:
        numbers = [str(n) for n in (self.every_s, self.characters, self.paused)]
        command = [sys.executable, "-c", PROGRAM, *numbers, *self.words]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )


def contents(folder: Path) -> dict[str, str]:
    """Hashes of a result's files."""
    files = (p for p in folder.iterdir() if not p.name.startswith("."))
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def outlived(workers: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run after a long wait; nobody may have asked how the others ended."""
    deadline = time.monotonic() + GONE_S
    while alive := [worker for worker in workers if _runs(worker)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return alive


def _runs(worker: psutil.Process) -> bool:
    try:
        return worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill(process: subprocess.Popen[str]) -> list[int]:
    """End the parent alone with SIGKILL; returns the workers that outlive it for long."""
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    alive = outlived(workers)
    for worker in alive:
        worker.kill()
    process.communicate()  # whoever lives on holds its pipes open
    return [worker.pid for worker in alive]


@dataclass
class Story:
    """What one folder went through; `wrong` is empty when nothing was lost."""

    words: list[str]
    out: Path
    shares: list[float] = field(default_factory=list)
    early: int = 0
    wrong: list[str] = field(default_factory=list)

    def live(self, draw: random.Random, whole_s: float, wanted: dict[str, str]) -> None:
        while self._once(draw, whole_s):
            self._judge_between(wanted)
        if contents(self.out) != wanted:
            self.wrong.append("bytes differ")
        if (self.out / ".preparing").exists():
            self.wrong.append("something is left")

    def _once(self, draw: random.Random, whole_s: float) -> bool:
        """Whether it was killed."""
        words = [*self.words, "--out", str(self.out), "--workers", str(draw.choice([1, 2, 3]))]
        process = Call(words).start()
        try:
            _, said = process.communicate(timeout=draw.uniform(0.2, 1.0) * whole_s)
        except subprocess.TimeoutExpired:
            if alive := kill(process):
                self.wrong.append(f"workers {alive} live on")
            share = share_done(self.out)
            self.early += share is None
            self.shares += [] if share is None else [share]
            return True
        if process.returncode:
            self.wrong.append(f"ended with {process.returncode}: {said}")
        return False

    def _judge_between(self, wanted: dict[str, str]) -> None:
        if (self.out / MANIFEST).exists() and contents(self.out) != wanted:
            self.wrong.append("a manifest vouches for half a result")

    def __str__(self) -> str:
        shown = " ".join(f"{100 * share:.0f}" for share in self.shares) or "-"
        verdict = "; ".join(self.wrong) or "bytes equal"
        kills = len(self.shares) + self.early
        return f"{kills:>5} kills, {self.early} before the first journal, at %: {shown}  {verdict}"


def write_corpus(folder: Path, mib: float) -> None:
    """Text files, JSON lines and gzip; each tenth record is bad, each fifth was there before."""
    draw = random.Random(0)
    words = [f"{a}{b}" for a in ("to", "ken", "in", "é", "日") for b in ("n", "sch", "", "x1", "y")]
    folder.mkdir()
    texts = [
        " ".join(draw.choices(words, k=draw.randrange(5, 400)))
        for _ in range(max(20, int(mib * 1024)))
    ]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    for i in range(0, len(lines), 5):
        lines[i] = lines[i // 2] if i % 10 else "{broken"
    half = len(lines) // 2
    (folder / "a.jsonl").write_text("\n".join(lines[:half]), "utf-8")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[half:]).encode(), 1))
    for i, text in enumerate(texts[:20]):
        (folder / f"c{i}.txt").write_text(text, "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--stories", type=int, default=20)
    parser.add_argument("--mib", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "corpus", options.mib)
        train_tokenizer([folder / "corpus"], folder / "tokenizer", vocab_size=300, threads=1)
        stories = []
        for number in range(options.stories):
            words = [str(folder / "corpus"), "--tokenizer", str(folder / "tokenizer")]
            words += ["--deduplicate"] if number % 2 else []
            reference = folder / f"reference-{number % 2}"
            start = time.monotonic()
            if not reference.exists():
                process = Call([*words, "--out", str(reference), "--workers", "1"]).start()
                process.communicate()
                whole_s = time.monotonic() - start
            stories.append(Story(words, folder / f"story-{number}"))
            stories[-1].live(draw, whole_s, contents(reference))
            print(f"story {number:>3}{stories[-1]}", flush=True)
    shares = [share for story in stories for share in story.shares]
    wrong = sum(bool(story.wrong) for story in stories)
    early = sum(story.early for story in stories)
    print(f"{len(shares) + early} kills in {len(stories)} stories, {wrong} of them wrong")
    if shares:
        print(f"taken up at {100 * statistics.median(shares):.0f} % in the median")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
