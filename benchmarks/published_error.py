"""Predicted against published throughput: `python benchmarks/published_error.py`.

`--json` prints rows, `--write` renews the table of `docs/predicted-speed.md`.

The rows are `published.json`. Those of the kind "fsdp" move what ZeRO-3 moves; every second one, in
the order of the file, was used to choose the constants of `planner.time.Assumptions` (`--fit` does
it again and prints them), the others were held out. Rows of other kinds (tensor and pipeline
parallelism, fp8) are predicted as plain ZeRO-3 in bf16 and were used for nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ds_llama.config.load import load_run
from ds_llama.config.resolve import Resolved, resolve
from ds_llama.planner import hardware, time
from ds_llama.planner.memory import memory
from ds_llama.planner.traffic import traffic

ROWS = Path(__file__).with_name("published.json")
SELECTIVE = 0.5  # of a block's matmuls run again


@dataclass(frozen=True)
class Compared:
    """One row: tokens/s and GPU, published and predicted, and which half it belongs to."""

    name: str
    kind: str
    half: str
    published: float
    predicted: float | None
    limit: str
    memory_gib: float | None = None
    planned_gib: tuple[float, ...] = ()

    @property
    def error(self) -> float | None:
        """Predicted over published, less one."""
        return None if self.predicted is None else self.predicted / self.published - 1


def resolved_of(row: dict[str, Any]) -> Resolved:
    """The row as a run of this package at stage 3, in bf16."""
    how = row["recompute"]
    train: dict[str, Any] = {
        "steps": 1,
        "micro_batch_size": row["micro_batch_size"],
        "global_batch_size": row["micro_batch_size"] * row["accumulation_steps"] * row["gpus"],
    }
    if how is not None:
        train["recompute"] = {"part": "block", "every": 2 if how == "alternate" else 1}
    model = row["model"]
    if "preset" not in model or row["sequence_length"] > 2048:
        model = {**model, "max_position_embeddings": max(131072, row["sequence_length"])}
    run = load_run(
        {
            "model": model,
            "data": {"train": "unused", "sequence_length": row["sequence_length"]},
            "optimizer": {"lr": 1e-4},
            "train": train,
            "deepspeed": {
                "bf16": {"enabled": True},
                "zero_optimization": row.get("zero", {"stage": 3}),
                "communication_data_type": row.get("reduce", "bf16"),
            },
        }
    )
    return resolve(run, row["gpus"])


def published_of(row: dict[str, Any], resolved: Resolved) -> float:
    """Tokens/s and GPU, or what that many model TFLOP/s are."""
    if "tokens_per_s_per_gpu" in row:
        return float(row["tokens_per_s_per_gpu"])
    return row["tflops_per_gpu"] * 1e12 / resolved.model.flops_per_token(row["sequence_length"])


def compare(
    rows: Iterable[dict[str, Any]], assumptions: time.Assumptions = time.DEFAULT
) -> list[Compared]:
    """Every row predicted; the first, third, ... "fsdp" row is of the half "fit"."""
    halves = itertools.cycle(("fit", "held out"))
    compared = []
    for row in rows:
        resolved = row.setdefault("_resolved", None) or resolved_of(row)
        row["_resolved"] = resolved
        moved = row.setdefault("_traffic", None) or traffic(resolved)
        row["_traffic"] = moved
        device = replace(hardware.find(row["hardware"]), **row.get("overrides", {}))
        share = SELECTIVE if row["recompute"] == "selective" else 1.0
        predicted = time.step_time(
            resolved, device, moved, fused=row["fused"], repeated=share, assumptions=assumptions
        )
        compared.append(
            Compared(
                row["name"],
                row["kind"],
                row.get("half") or (next(halves) if row["kind"] == "fsdp" else row["kind"]),
                published_of(row, resolved),
                None if predicted is None else predicted.tokens_per_s_per_device,
                "" if predicted is None else predicted.limit,
                row.get("memory_gib"),
                planned_gib(row) if "memory_gib" in row else (),
            )
        )
    return compared


def planned_gib(row: dict[str, Any]) -> tuple[float, ...]:
    """The plan's peak on the device; of selective recomputation, which keeps some results of every
    block, what it is with every block recomputed and with none."""
    ways = ("block", None) if row["recompute"] == "selective" else (row["recompute"],)
    held = (memory(resolved_of({**row, "recompute": how})) for how in ways)
    return tuple(each.device_peak.total / 2**30 for each in held)


def errors(compared: Iterable[Compared], half: str) -> list[float]:
    """Absolute errors of one half."""
    return [abs(row.error) for row in compared if row.half == half and row.error is not None]


GRID = {"matmul": (0.75, 0.8, 0.85, 0.9, 0.95), "unhidden": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)}


def fit(rows: list[dict[str, Any]]) -> time.Assumptions:
    """The grid's point with the least mean absolute error over the first half."""

    def score(point: time.Assumptions) -> float:
        return statistics.mean(errors(compare(chosen, point), "fit"))

    chosen = [row for row in rows if row["kind"] == "fsdp"]
    names = list(GRID)
    points = (
        replace(time.DEFAULT, **dict(zip(names, values, strict=True)))
        for values in itertools.product(*GRID.values())
    )
    return min(points, key=score)


PAGE = Path(__file__).parents[1] / "docs" / "predicted-speed.md"
_HEAD = (
    "| published run | source | tokens/s and GPU | predicted | error | |\n"
    "| --- | --- | ---: | ---: | ---: | --- |\n"
)


def table(rows: list[dict[str, Any]], compared: list[Compared]) -> str:
    """Every row in Markdown; ends with the last row's end of line."""
    lines = []
    for row, found in zip(rows, compared, strict=True):
        error = "unknown" if found.error is None else f"{found.error:+.0%}"
        predicted = "-" if found.predicted is None else f"{found.predicted:,.0f}"
        host = row["source"].split("/")[2].removeprefix("www.")
        lines.append(
            f"| {row['name']} | [{host}]({row['source']}) | {found.published:,.0f} | {predicted} "
            f"| {error} | {found.half} |\n"
        )
    return _HEAD + "".join(lines)


def renewed(page: str, content: str) -> str:
    """The page with its table replaced."""
    before, rest = page.split("<!-- table -->\n")
    return (
        f"{before}<!-- table -->\n{content}<!-- end of table -->\n"
        + rest.split("<!-- end of table -->\n")[1]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true", help="choose the constants again")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--write", action="store_true", help=f"renew {PAGE.name}")
    arguments = parser.parse_args()
    rows = json.loads(ROWS.read_text())["rows"]
    assumptions = fit(rows) if arguments.fit else time.DEFAULT
    compared = compare(rows, assumptions)
    if arguments.json:
        print(json.dumps([{**vars(row), "error": row.error} for row in compared], indent=1))
        return
    if arguments.write:
        PAGE.write_text(renewed(PAGE.read_text(), table(rows, compared)))
    if arguments.fit:
        print(assumptions)
    for row in compared:
        error = "unknown" if row.error is None else f"{row.error:+7.1%}"
        predicted = 0.0 if row.predicted is None else row.predicted
        print(f"{row.name:58s} {row.half:9s} {row.published:9.0f} {predicted:9.0f} {error}")
    print("device memory at its peak, GiB: published (reserved or allocated) and planned")
    for row in compared:
        if row.memory_gib is not None:
            each = (f"{held:6.1f} ({held / row.memory_gib - 1:+.0%})" for held in row.planned_gib)
            print(f"{row.name:78s} {row.memory_gib:6.1f} {' to '.join(each)}")
    for half in dict.fromkeys(row.half for row in compared):
        found = errors(compared, half)
        middle, worst = statistics.median(found), max(found)
        print(f"{half:9s} {len(found):3d} rows: median error {middle:.1%}, worst {worst:.1%}")


if __name__ == "__main__":
    main()
