"""Memory as `ds-llama plan` predicts it, against the simulator and against measurement.

    python benchmarks/plan_error.py                    a stratified sample, shallow models and whole
    python benchmarks/plan_error.py --quick            the cells that the suite simulates again
    python benchmarks/plan_error.py --full             the large models at their full depth too
    python benchmarks/plan_error.py --from FILE        predict again what FILE has simulated
    python benchmarks/plan_error.py --random 200 --seed 1   cells that nobody chose

A cell is a strategy, a model (whole, or with fewer layers: a layer costs the plan what it costs the
engine), a world, a sequence length, a micro-batch, and what is recomputed. Prints the worst and the
median error of each strategy, and writes every cell's bytes to FILE. The measured side is the CPU
matrix of `memory_matrix.py`, total bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ds_llama.config.load import load_run
from ds_llama.config.resolve import resolve, versions
from ds_llama.config.run import Run
from ds_llama.errors import DsLlamaError
from ds_llama.planner.memory import Memory, memory
from ds_llama.simulator.process import Simulator
from ds_llama.simulator.result import Request, Simulation

RESULT = Path(__file__).parent / "results" / "plan_error.json"
RANDOM = RESULT.with_name("plan_error_random.json")
MATRIX = Path(__file__).parent / "results" / "memory_matrix.json"
BOUND, MATRIX_BOUND = 0.03, 0.02
NOTHING = 64 * 2**20  # bytes below which host memory is loss, labels and flags: no error is taken
Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One comparison. `layers` and `vocabulary`: instead of the preset's own; `overrides` as on the
    command line, `key.path=value`."""

    strategy: str
    preset: str
    layers: int | None = 2
    world: int = 8
    sequence: int = 2048
    micro_batch: int = 1
    accumulation: int = 1
    recompute: str | None = None
    every: int = 1
    vocabulary: int | None = None
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "overrides", tuple(self.overrides))  # a list, from JSON

    def run(self, folder: str = "unused") -> Run:
        """The cell as a run; `folder` is what it would swap to."""
        model: dict[str, Any] = {"preset": self.preset}
        if self.layers is not None:
            model["num_hidden_layers"] = self.layers
        if self.vocabulary is not None:
            model["vocab_size"] = self.vocabulary
        size = self.micro_batch * self.accumulation * self.world
        train: dict[str, Any] = {"steps": 3, "micro_batch_size": self.micro_batch}
        train["global_batch_size"] = size
        if self.recompute is not None:
            train["recompute"] = {"part": self.recompute, "every": self.every}
        offloads = ("offload_optimizer", "offload_param")
        places = [f"deepspeed.zero_optimization.{name}.nvme_path={folder}" for name in offloads]
        named = {"zero3_nvme": places, "zero3_nvme_optimizer": places[:1]}
        model["max_position_embeddings"] = max(131072, self.sequence)
        tree = {
            "model": model,
            "data": {"train": "unused", "sequence_length": self.sequence},
            "optimizer": {"lr": 1e-4},
            "train": train,
            "deepspeed": self.strategy,
        }
        return load_run(tree, *named.get(self.strategy, ()), *self.overrides)


QUICK = (
    Cell("zero1", "tiny", None, world=4, sequence=256),
    Cell("zero2", "tiny", None, world=16, sequence=256, micro_batch=4, recompute="block"),
    Cell("zero3", "tiny", None, world=16, sequence=512, micro_batch=2),
    Cell("zero3_offload", "tiny", None, world=4, sequence=256, accumulation=2),
)


def sample() -> list[Cell]:
    """Every strategy at a 7B's and an 8B's shapes, then each axis by itself, then whole models."""
    cells = [*QUICK]
    names = ("zero0", "zero1", "zero1_offload", "zero2", "zero2_offload", "zero2_fp16")
    names += ("zero2_bf16_states", "zero3", "zero3_offload_optimizer", "zero3_offload")
    names += ("zero3_twinflow", "zero3_hpz", "zero3_nvme_optimizer", "zero3_nvme")
    for index, name in enumerate(names):
        preset = ("llama-2-7b", "llama-3-8b")[index % 2]
        cells.append(Cell(name, preset, world=(8, 16)[name == "zero3_hpz"]))
    for world in (1, 2, 64, 1024):
        cells.append(Cell("zero3", "llama-2-7b", world=world, recompute="block"))
        cells.append(Cell("zero2", "llama-2-7b", world=world, accumulation=2))
    for sequence in (512, 8192, 32768):
        cells.append(Cell("zero3", "llama-3.2-1b", sequence=sequence))
        cells.append(Cell("zero1", "llama-2-7b", sequence=sequence, recompute="block"))
    for micro_batch in (2, 8):
        cells.append(Cell("zero2", "llama-3-8b", micro_batch=micro_batch))
        cells.append(Cell("zero3_offload", "llama-2-7b", micro_batch=micro_batch))
    for part, every in (("attention", 1), ("mlp", 1), ("block", 2)):
        cells.append(Cell("zero3", "llama-3-8b", 4, recompute=part, every=every, micro_batch=2))
    cells.append(Cell("zero2", "llama-2-7b", vocabulary=128256))
    cells.append(Cell("zero3", "llama-3-8b", vocabulary=32000))
    for preset, world in (("llama-13b", 16), ("llama-3.1-70b", 64), ("llama-3.1-405b", 128)):
        cells.append(Cell("zero3", preset, world=world, sequence=4096, recompute="block"))
        cells.append(Cell("zero1", preset, world=world, sequence=4096, recompute="block"))
    for name in ("zero1", "zero2", "zero3", "zero3_offload"):
        cells.append(Cell(name, "llama-3.2-1b", None, world=8))
    return [*cells, *autocast()]


def autocast() -> list[Cell]:
    """fp32 weights under `torch_autocast`, at stages 1 to 3; what is recomputed is not under it."""
    axes: list[tuple[int, str, int, str | None, str]] = [
        (2, "llama-3-8b", 1, None, "bfloat16"),
        (2, "llama-3-8b", 8, None, "bfloat16"),
        (2, "llama-2-7b", 8, "block", "float16"),
        (3, "llama-3-8b", 8, None, "float16"),
        (3, "llama-3.2-1b", 4, "attention", "bfloat16"),
        (1, "llama-3.2-1b", 4, "mlp", "bfloat16"),
    ]
    keys = ("zero_optimization.stage", "torch_autocast.dtype")
    cells = [
        Cell(
            "zero2_autocast",
            preset,
            sequence=512,
            micro_batch=micro_batch,
            recompute=part,
            overrides=(f"deepspeed.{keys[0]}={stage}", f"deepspeed.{keys[1]}={dtype}"),
        )
        for stage, preset, micro_batch, part, dtype in axes
    ]
    return [*cells, Cell("zero2_autocast", "llama-2-7b", 8, world=64, micro_batch=2)]


def large() -> list[Cell]:
    """Whole models; a minute or more each."""
    wholes = [
        ("llama-2-7b", 64, 2048),
        ("llama-3.1-70b", 512, 8192),
        ("llama-3.1-405b", 1024, 8192),
    ]
    return [
        Cell(name, preset, None, world=world, sequence=sequence, recompute="block")
        for preset, world, sequence in wholes
        for name in ("zero3", "zero2")
    ]


SHARDED = ("zero1", "zero1_offload", "zero2", "zero2_offload", "zero2_bf16_states", "zero3")
SHARDED += ("zero3_offload_optimizer", "zero3_offload", "zero3_twinflow", "zero3_hpz")
DRAWN = ("zero0", *SHARDED, *SHARDED, "zero3_nvme", "zero3_nvme_optimizer")
PRESETS = ("tinyllama-1.1b", "llama-3.2-1b", "llama-3.2-3b", "llama-2-7b", "llama-3-8b")
PRESETS += ("llama-2-13b", "llama-33b", "llama-65b", "llama-3.1-70b", "llama-3.1-405b")
WORLDS = (1, 2, 3, 4, 8, 8, 16, 24, 64, 100, 256, 512, 1024)
OTHERS: dict[str, tuple[Any, ...]] = {
    "reduce_bucket_size": (10**6, 5 * 10**7, 2 * 10**8, 5 * 10**8, 10**9),
    "contiguous_gradients": (False,),
    "reduce_scatter": (False,),
    "overlap_comm": (True, False),
    "allgather_bucket_size": (2 * 10**6, 5 * 10**8, 10**9),
    "round_robin_gradients": (True,),
    "stage3_prefetch_bucket_size": (0, 10**7, 5 * 10**7, 5 * 10**8),
    "stage3_param_persistence_threshold": (0, 10**4, 10**5, 10**6, 2 * 10**7),
    "stage3_max_live_parameters": (0, 10**7, 3 * 10**8, 10**9, 10**10),
    "stage3_max_reuse_distance": (0, 10**8, 10**9, 10**10),
    "sub_group_size": (10**7, 10**8, 10**9, 10**12),
    "zero_hpz_partition_size": (2, 4, 8),
    "offload_optimizer.pin_memory": (False,),
    "offload_param.pin_memory": (False,),
    "offload_optimizer.ratio": (0.0, 0.3, 0.5, 0.9),
}
"""Other values of `zero_optimization`; a cell whose stage has no such key is drawn again."""


def drawn(seed: int) -> Iterator[Cell]:
    """Cells of every axis at random, without end; only what resolves. Most are shallow."""
    rng = random.Random(seed)
    while True:
        cell = _draw(rng)
        try:
            resolve(cell.run(), cell.world)
        except DsLlamaError:
            continue
        yield cell


def _draw(rng: random.Random) -> Cell:
    strategy, preset = rng.choice(DRAWN), rng.choice(PRESETS)
    whole = preset in PRESETS[:2] and rng.random() < 0.15
    overrides = []
    for name, values in OTHERS.items():
        if rng.random() < 0.25:
            overrides.append(f"deepspeed.zero_optimization.{name}={json.dumps(rng.choice(values))}")
    if rng.random() < 0.25:
        overrides.append("deepspeed.gradient_clipping=0.0")
    dtype = rng.choice(("bf16", "bf16", "bf16", "fp16", "fp32"))
    if strategy not in ("zero0", "zero2_bf16_states") and dtype != "bf16":
        overrides.append("deepspeed.bf16.enabled=false")
        overrides += ["deepspeed.fp16.enabled=true"] * (dtype == "fp16")
    if rng.random() < 0.2:
        sums = rng.choice(("fp32", "bf16", "fp16"))
        overrides.append(f"deepspeed.data_types.grad_accum_dtype={sums}")
    if rng.random() < 0.1:
        overrides.append(f"deepspeed.communication_data_type={rng.choice(('fp32', 'bf16'))}")
    if rng.random() < 0.2:
        overrides.append(f"optimizer.type={rng.choice(('SGD', 'Lion', 'Adagrad', 'Muon'))}")
    if rng.random() < 0.3:
        overrides.append(f"model.tie_word_embeddings={rng.choice(('true', 'false'))}")
    part = rng.choice((None, None, "attention", "mlp", "block", "block"))
    sequence = rng.choice((512, 512, 1000, 1000, 2048, 2048, 4096, 8192, 32768))
    return Cell(
        strategy,
        preset,
        None if whole else rng.choice((2, 2, 3)),
        world=rng.choice(WORLDS),
        sequence=sequence,
        micro_batch=rng.choice((1, 1, 2, 3, 4, 8)) if sequence <= 1000 else 1,  # or it takes long
        accumulation=rng.choice((1, 1, 1, 2, 3, 8)),
        recompute=part,
        every=rng.choice((1, 1, 2, 3)) if part is not None else 1,
        vocabulary=rng.choice((None, 32000, 128256)),
        overrides=tuple(overrides),
    )


def simulated(cells: Sequence[Cell]) -> Iterator[tuple[Cell, dict[str, int] | str]]:
    """Each cell with its simulated peaks, or with the reason why there are none."""
    with tempfile.TemporaryDirectory() as folder, Simulator() as simulator:
        for cell in cells:
            request = Request(cell.run(folder), cell.world)
            [outcome] = simulator.outcomes([request])
            if isinstance(outcome, Simulation):
                steady = outcome.phase("step").device.now_bytes
                yield cell, {**outcome.peak, "steady_bytes": steady}
            else:
                yield cell, str(outcome).splitlines()[0]


def predicted(cell: Cell) -> Memory:
    """What the plan says of a cell."""
    return memory(resolve(cell.run(), cell.world))


def row_of(cell: Cell, peaks: dict[str, int]) -> Row:
    """A cell's bytes, both ways, and the errors: (predicted - simulated) / simulated."""
    plan = predicted(cell)
    row: Row = {"cell": asdict(cell), "simulated": peaks}
    row["predicted"] = {
        "device_bytes": plan.device_peak.total,
        "host_bytes": plan.host_peak_bytes,
        "steady_bytes": plan.device_steady.total,
    }
    row["error"] = {
        place: row["predicted"][place] / peaks[place] - 1
        for place in row["predicted"]
        if peaks.get(place, 0) > NOTHING or place == "device_bytes"
    }
    return row


def worst(row: Row) -> float:
    """The larger of a row's errors."""
    return max(abs(error) for error in row["error"].values())


def matrix_rows() -> list[Row]:
    """The measured CPU matrix with what the plan says of each cell, in total bytes."""
    from ds_llama.selftest.cells import Cell as MatrixCell
    from ds_llama.selftest.memory import memory_run

    rows = []
    for row in json.loads(MATRIX.read_text())["rows"]:
        keys = ("precision", "stage", "offload", "recompute", "accumulation")
        cell, world = MatrixCell(**{key: row[key] for key in keys}), row["world_size"]
        with tempfile.TemporaryDirectory() as folder:
            run = memory_run(cell, Path(folder), world)
            plan = memory(resolve(run, world, device="cpu")).total_peak_bytes
        parts = [*row["measured"]["phases"], *row["measured"]["first_step"]]
        real = max(phase["total"]["peak_bytes"] for phase in parts)
        name = f"{row['cell']}-world{world}"
        rows.append({"cell": name, "measured": real, "predicted": plan, "error": plan / real - 1})
    return rows


def summary(rows: Iterable[Row], matrix: Sequence[Row]) -> dict[str, Any]:
    """Worst and median of each strategy, of all, and of the measured matrix."""
    by_name: dict[str, list[float]] = {}
    for row in rows:
        by_name.setdefault(row["cell"]["strategy"], []).append(worst(row))
    everything = [error for errors in by_name.values() for error in errors]
    table = {**dict(sorted(by_name.items())), "all": everything}
    table["measured on CPU"] = [abs(row["error"]) for row in matrix]
    return {
        name: {"cells": len(errors), "worst": max(errors), "median": statistics.median(errors)}
        for name, errors in table.items()
        if errors
    }


def printed(found: dict[str, Any]) -> str:
    """The summary as a table."""
    lines = [f"{'strategy':26} {'cells':>5} {'worst':>8} {'median':>8}"]
    for name, row in found.items():
        worst_, median = (f"{100 * row[key]:.2f} %" for key in ("worst", "median"))
        lines.append(f"{name:26} {row['cells']:5} {worst_:>8} {median:>8}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--random", type=int, metavar="N", help="this many cells at random instead")
    parser.add_argument("--seed", type=int, default=3, help="of --random")
    parser.add_argument("--again", action="store_true", help="simulate what FILE has too")
    parser.add_argument("--from", dest="source", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.source is not None and not arguments.source.is_file():
        parser.error(f"--from {arguments.source}: there is no such file")
    out = arguments.out or (RANDOM if arguments.random else RESULT)
    source = arguments.source or out
    known = json.loads(source.read_text()) if source.exists() else {"rows": [], "refused": {}}
    peaks = {Cell(**row["cell"]): row["simulated"] for row in known["rows"]}
    refused = dict(known["refused"])
    cells = list(QUICK) if arguments.quick else sample()
    cells += large() if arguments.full else []
    if arguments.random:
        cells = list(islice(drawn(arguments.seed), arguments.random))
    if arguments.source is not None:
        cells = list(peaks)
    new = [c for c in cells if arguments.again or not (c in peaks or str(c) in refused)]
    try:
        for cell, outcome in simulated(new):
            if isinstance(outcome, dict):
                peaks[cell] = outcome
                print(f"{worst(row_of(cell, outcome)):8.2%}  {cell}", flush=True)
            else:
                refused[str(cell)] = outcome
                print(f"   none  {cell}: {outcome}", flush=True)
    finally:  # what was simulated is kept, however it ends
        rows, matrix = _write(out, peaks, refused)
    print(printed(summary(rows, matrix)))
    beyond = [row for row in rows if worst(row) > BOUND]
    for row in beyond:
        print(f"{worst(row):8.2%}  {Cell(**row['cell'])}")
    return int(bool(beyond))


def _write(
    out: Path, peaks: dict[Cell, dict[str, int]], refused: dict[str, str]
) -> tuple[list[Row], list[Row]]:
    rows = [row_of(cell, found) for cell, found in peaks.items()]
    matrix = matrix_rows() if out.name != RANDOM.name and MATRIX.exists() else []
    content = {
        "versions": versions(),
        "summary": summary(rows, matrix),
        "refused": refused,
        "rows": rows,
        "matrix": matrix,
    }
    out.write_text(json.dumps(content, indent=1) + "\n")
    return rows, matrix


if __name__ == "__main__":
    raise SystemExit(main())
