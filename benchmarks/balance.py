"""Steps over documents of log-normal length: in the sampler's order, and with equal work for ranks.

    python benchmarks/balance.py [--world 2] [--stage 3] [--hidden 256] [--layers 4] [--out ROW]

Both assignments take turns on one engine, over the same global batches (`data.balance`). Medians of
the steps, and of the ratios of the pairs that followed each other:

    wall_s         from barrier to barrier
    busiest_cpu_s  of the rank that worked longest; all_cpu_s: of the ranks together
    imbalance      FLOPs of the longest rank of each micro-step, over the mean
    filled         share of the computed tokens that fill rows
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
KINDS = ("in order", "balanced")
COLUMNS = ("wall_s", "busiest_cpu_s", "all_cpu_s", "imbalance", "filled")
VOCAB = 8192
WARM = 2


def rank(folder: Path, options: argparse.Namespace) -> None:
    """One rank of a launch; rank 0 prints a row a step and kind."""
    import torch

    from ds_llama.bench import machine
    from ds_llama.data import open_corpora
    from ds_llama.data.loader import Loader
    from ds_llama.trainer.build import construct
    from ds_llama.zero import world
    from ds_llama.zero.register import register

    world.join()
    run = _run(folder, options, world.world_size())
    if world.rank() == 0:
        _write(str(run.data.train), _lengths(options))
    torch.distributed.barrier()
    engine = register(construct(run), run)
    resolved = engine.ds_llama.resolved
    dataset, order = open_corpora(run.data, run.data.train, 0)
    sizes = {
        "global_batch_size": resolved.global_batch_size,
        "micro_batch_size": resolved.micro_batch_size,
        "world_size": world.world_size(),
    }
    plain = Loader(dataset, order, rank=world.rank(), **sizes)
    own = {"rank": world.rank(), "device": world.device()}
    with plain, Loader.of_run(resolved, dataset, order, **own) as balanced:
        for step in range(options.steps):
            turns = [*zip(KINDS, (plain, balanced), strict=True)]
            for kind, loader in turns if step % 2 else turns[::-1]:
                row = {"kind": kind, "step": step, **_step(engine, next(loader))}
                if world.rank() == 0:
                    print(json.dumps(row), flush=True)
    if world.rank() == 0:
        found = machine.provenance([], world.device().type)
        found["command"] = ["python", "benchmarks/balance.py"]
        print(json.dumps({"provenance": found, "load": os.getloadavg()[0]}), flush=True)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _step(engine: Any, window: Sequence[Any]) -> Row:
    import torch

    from ds_llama.checkpoint import ranks
    from ds_llama.data.balance import Cost
    from ds_llama.zero.step import take_step, valid_tokens

    cost = Cost.of(engine.ds_llama.resolved.model)
    torch.distributed.barrier()
    start, cpu = time.perf_counter(), time.process_time()
    result = take_step(engine, window)
    cpu = time.process_time() - cpu
    torch.distributed.barrier()
    wall = time.perf_counter() - start
    work = [
        cost.per_token * batch["input_ids"].numel()
        + cost.per_square * int((batch["document_lengths"] ** 2).sum())
        for batch in window
    ]
    tokens = sum(batch["input_ids"].numel() for batch in window)
    held = sum(valid_tokens(batch) + len(batch["labels"]) for batch in window)
    everyones = ranks.gather((work, cpu, tokens, held))
    longest = sum(max(step) for step in zip(*(each[0] for each in everyones), strict=True))
    mean = sum(sum(each[0]) for each in everyones) / len(everyones)
    return {
        "wall_s": wall,
        "busiest_cpu_s": max(each[1] for each in everyones),
        "all_cpu_s": sum(each[1] for each in everyones),
        "imbalance": longest / mean,
        "filled": 1 - sum(each[3] for each in everyones) / sum(each[2] for each in everyones),
        "loss": result.loss if result else None,
    }


def _lengths(options: argparse.Namespace) -> list[int]:
    """Log-normal, cut at a row: `median` tokens in the middle."""
    draw = random.Random(0)
    documents = (
        draw.lognormvariate(math.log(options.median), options.sigma)
        for _ in range(options.steps * options.batch)
    )
    return [min(options.length, max(2, round(tokens))) for tokens in documents]


def _write(prefix: str, lengths: Sequence[int]) -> None:
    import numpy as np

    from ds_llama.data import ShardWriter

    draw = np.random.default_rng(0)
    with ShardWriter(prefix, vocab_size=VOCAB) as writer:
        for length in lengths:
            writer.add(draw.integers(0, VOCAB, length))


def _run(folder: Path, options: argparse.Namespace, world: int) -> Any:
    from ds_llama.selftest.tiny import make_run

    shape = {
        "vocab_size": VOCAB,
        "hidden_size": options.hidden,
        "intermediate_size": 8 * options.hidden // 3 // 16 * 16,
        "num_hidden_layers": options.layers,
        "max_position_embeddings": options.length,
    }
    data = {"train": str(folder / "shard"), "sequence_length": options.length, "packing": "none"}
    return make_run(
        folder,
        world=world,
        stage=options.stage,
        micro_batch_size=options.micro,
        accumulation=options.batch // (options.micro * world),
        model=shape,
        data=data,
    )


def summary(rows: Sequence[Row]) -> Row:
    """Medians by kind, and of the pairs' ratios, the first steps left out."""
    kept = {kind: [r for r in rows if r["kind"] == kind and r["step"] >= WARM] for kind in KINDS}
    found: Row = {
        kind: {name: statistics.median(row[name] for row in same) for name in COLUMNS}
        for kind, same in kept.items()
    }
    pairs = [*zip(*kept.values(), strict=True)]
    found["ratio"] = {
        name: statistics.median(first[name] / second[name] for first, second in pairs)
        for name in COLUMNS[:3]
    }
    found["steps"] = len(pairs)
    return found


def table(found: Row) -> str:
    """A line a kind, and how much longer the sampler's order takes."""
    lines = [f"{'rows are assigned':18}" + "".join(f"{name:>15}" for name in COLUMNS)]
    for kind in KINDS:
        lines.append(f"{kind:18}" + "".join(f"{found[kind][name]:15.3f}" for name in COLUMNS))
    ratios = "".join(f"{found['ratio'][name]:15.3f}" for name in COLUMNS[:3])
    return "\n".join([*lines, f"{'in order/balanced':18}{ratios}"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    numbers = {
        **{"world": 2, "stage": 3, "hidden": 256, "layers": 4},
        **{"length": 1024, "batch": 32, "micro": 4, "steps": 12, "median": 120},
    }
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--sigma", type=float, default=1.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank(options.rank, options)
        return 0
    from own_ranks import rows_of_ranks  # beside this file, which tests read without running it

    with tempfile.TemporaryDirectory(prefix="ds-llama-balance-") as folder:
        rows = rows_of_ranks(__file__, Path(folder), options.world)
    machine = rows.pop()
    found = summary(rows)
    print(table(found))
    print(
        f"{machine['load']:.1f} processes wanted to run in the last minute, {options.world} of ours"
    )
    if options.out:
        settings = {name: getattr(options, name) for name in (*numbers, "sigma")}
        head = json.dumps({"settings": settings, **found, **machine}, indent=1)[:-2]
        lines = ",\n".join(map(json.dumps, rows))
        options.out.write_text(f'{head},\n "rows": [\n{lines}\n]}}\n')
    return 0


if __name__ == "__main__":
    sys.exit(main())
