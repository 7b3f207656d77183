"""Predicted against measured tokens/s on this machine: `python benchmarks/calibrated_error.py`.

Takes the profile of `ds-llama plan --calibrate` (or --hardware FILE), trains small models shortly
at stages 1 and 3 on one and two ranks, and prints the median and the fastest step beside the
prediction, which is made of fastest times. All are worth as much as the machine is idle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ds_llama.config.load import load_run
from ds_llama.config.resolve import resolve
from ds_llama.data.shards import ShardWriter
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


def measured(run: dict[str, Any], ranks: int, folder: Path) -> tuple[float, float]:
    """Tokens/s of the median step and of the fastest, the first third left out."""
    path = folder / "run.json"
    path.write_text(json.dumps(run))
    command = [sys.executable, "-m", "ds_llama", "train", str(path), "--nproc", str(ranks)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    lines = (Path(run["output"]) / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "tokens_per_s" in row]
    rates = [row["tokens_per_s"] for row in rows[STEPS // 3 :]]
    return statistics.median(rates), max(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hardware", default="local", help="a profile's file")
    device = hardware.find(parser.parse_args().hardware)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for preset, vocabulary in (("tiny", 256), ("quickstart", 4096)):
            tokens = np.random.default_rng(0).integers(3, vocabulary, 60_000)
            with ShardWriter(folder / preset, vocab_size=vocabulary) as writer:
                writer.add(tokens)
        for preset, stage, ranks in CELLS:
            run = run_of(preset, stage, ranks, folder)
            resolved = resolve(load_run(run), ranks, device="cpu")
            time = step_time(resolved, device, traffic(resolved))
            rate, fastest = measured(run, ranks, folder)
            predicted = 0.0 if time is None else time.tokens_per_s
            print(
                f"{preset:10s} stage {stage} ranks {ranks}: median {rate:8.0f} tokens/s, "
                f"fastest {fastest:8.0f}, predicted {predicted:8.0f} "
                f"({predicted / rate - 1:+.0%}, {predicted / fastest - 1:+.0%}), "
                f"limit {'' if time is None else time.limit}",
                flush=True,
            )


if __name__ == "__main__":
    main()
