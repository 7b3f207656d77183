"""Predicted against measured tokens/s on this machine: `python benchmarks/calibrated_error.py`.

Takes the profile of `ds-llama plan --calibrate` (or --hardware FILE), trains small models shortly
at stages 1 and 3 on one and two ranks, all of them in turn and all again (--repeats), and prints
the median and the fastest step beside the prediction, which is made of fastest times. All are worth
as much as the machine is idle. `--write` keeps the rows in `results/calibrated_error.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ds_llama.config.load import load_run
from ds_llama.config.resolve import resolve
from ds_llama.data.shards import ShardWriter
from ds_llama.errors import CallError
from ds_llama.planner import hardware
from ds_llama.planner.time import step_time
from ds_llama.planner.traffic import traffic

CELLS = [
    (preset, stage, ranks)
    for preset in ("tiny", "quickstart")
    for stage in (1, 3)
    for ranks in (1, 2)
]
STEPS = 24
RESULT = Path(__file__).parent / "results" / "calibrated_error.json"


def run_of(preset: str, stage: int, ranks: int, folder: Path) -> dict[str, Any]:
    """A short run in fp32 over random tokens, two sequences a rank and step."""
    length = {"tiny": 64, "quickstart": 256}[preset]
    return {
        "model": {"preset": preset},
        "data": {"train": str(folder / preset), "sequence_length": length},
        "optimizer": {"lr": 1e-4},
        "train": {"steps": STEPS, "micro_batch_size": 2, "global_batch_size": 2 * ranks},
        "deepspeed": {"zero_optimization": {"stage": stage}},
        "output": str(folder / f"{preset}-{stage}-{ranks}"),
    }


def measured(run: dict[str, Any], ranks: int, folder: Path) -> list[float]:
    """Tokens/s of every step, the first third left out."""
    path = folder / "run.json"
    path.write_text(json.dumps(run))
    command = [sys.executable, "-m", "ds_llama", "train", str(path), "--nproc", str(ranks)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    lines = (Path(run["output"]) / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "tokens_per_s" in row]
    return [row["tokens_per_s"] for row in rows[STEPS // 3 :]]


@dataclass(frozen=True)
class Row:
    """One cell: tokens/s of all ranks; errors are predicted over measured, less one."""

    preset: str
    stage: int
    ranks: int
    median: float
    fastest: float
    predicted: float | None
    limit: str
    error_of_median: float | None
    error_of_fastest: float | None

    def __str__(self) -> str:
        start = (
            f"{self.preset:10s} stage {self.stage} ranks {self.ranks}: median {self.median:8.0f} "
            f"tokens/s, fastest {self.fastest:8.0f}, "
        )
        if self.predicted is None or self.error_of_fastest is None:
            return start + "predicted -: the profile lacks a figure for it"
        return (
            f"{start}predicted {self.predicted:8.0f} ({self.error_of_median:+.0%}, "
            f"{self.error_of_fastest:+.0%}), limit {self.limit}"
        )


def row_of(
    cell: tuple[str, int, int], device: hardware.Hardware, rates: list[float], folder: Path
) -> Row:
    """The cell's prediction beside all its measured rates."""
    resolved = resolve(load_run(run_of(*cell, folder)), cell[2], device="cpu")
    time = step_time(resolved, device, traffic(resolved))
    median, fastest = statistics.median(rates), max(rates)
    if time is None:
        return Row(*cell, median, fastest, None, "", None, None)
    errors = (time.tokens_per_s / rate - 1 for rate in (median, fastest))
    return Row(*cell, median, fastest, time.tokens_per_s, time.limit, *errors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hardware", default="local", help="a profile's file")
    parser.add_argument("--repeats", type=int, default=2, help="rounds over all cells")
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    arguments = parser.parse_args()
    try:
        device = hardware.find(arguments.hardware)
    except CallError as error:
        sys.exit(f"error: {error.what}\nwhere: {error.where}\nremedy: {error.remedy}")
    rates: dict[tuple[str, int, int], list[float]] = {cell: [] for cell in CELLS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for preset, vocabulary in (("tiny", 256), ("quickstart", 4096)):
            tokens = np.random.default_rng(0).integers(3, vocabulary, 60_000)
            with ShardWriter(folder / preset, vocab_size=vocabulary) as writer:
                writer.add(tokens)
        for repeat in range(max(1, arguments.repeats)):
            for cell in CELLS:
                run = run_of(*cell, folder)
                run["output"] += f"-{repeat}"
                rates[cell] += measured(run, cell[2], folder)
        rows = [row_of(cell, device, rates[cell], folder) for cell in CELLS]
    print(device.source)
    print(*rows, sep="\n")
    if arguments.write:
        found = {"hardware": device.source, "rows": [asdict(row) for row in rows]}
        RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
