"""How long training stands still for a checkpoint: written at once, and in the background.

    python benchmarks/save_pause.py [--world 2] [--stage 2] [--hidden 512] [--layers 8] [--trials 5]

Both kinds of save take turns on one engine, each followed by steps; those after a save in the
background train while it is written. Times are wall seconds of rank 0, the median of the trials:

    pause       training stood still             copy        of which: the shards into host memory
    checksums   of which: of every tensor        written     from the copy, or the beginning, to the
                                                             commit
    step        one step after the save, beside one with nothing else to do
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
COLUMNS = ("pause_s", "copy_s", "checksums_s", "written_s", "step_s")


def rank(folder: Path, options: argparse.Namespace) -> None:
    """One rank of a launch; rank 0 prints a row a save."""
    import torch

    from ds_llama.checkpoint import background, checksums, save, shards
    from ds_llama.trainer.build import construct
    from ds_llama.zero import world
    from ds_llama.zero.register import register

    world.join()
    run = _run(folder, options, world.world_size())
    engine, parts = register(construct(run), run), {}
    resolved = engine.ds_llama.resolved
    shards.snapshot = _timed(shards.snapshot, parts, "copy_s")
    checksums.compute = _timed(checksums.compute, parts, "checksums_s")
    saves, root = background.Background(), folder / "checkpoints"
    step_s = _steps(engine, 3, options)
    for trial in range(2 * options.trials):
        kind = "background" if trial % 2 else "foreground"
        parts.clear()
        position = {"step": trial, "tokens_seen": 0, "samples_seen": 0}
        act = saves.save if trial % 2 else save.save
        start = time.perf_counter()
        act(engine, root, trial, position, resolved, keep_last=1)
        pause_s = time.perf_counter() - start
        found = _steps(engine, 2, options)
        saves.finish()
        written_s = next((seconds for _, seconds in saves.written()), pause_s)
        row = {"kind": kind, "pause_s": pause_s, "written_s": written_s, "step_s": found, **parts}
        if world.rank() == 0:
            size = sum(path.stat().st_size for path in root.glob("step-*/*"))
            print(json.dumps({**row, "bytes": size, "idle_step_s": step_s}), flush=True)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _run(folder: Path, options: argparse.Namespace, world: int) -> Any:
    from ds_llama.selftest.tiny import make_run

    shape = {
        "vocab_size": 32000,
        "hidden_size": options.hidden,
        "intermediate_size": 8 * options.hidden // 3 // 16 * 16,
        "num_hidden_layers": options.layers,
    }
    keys = {"stage": options.stage, "precision": "bf16", "offload": options.offload}
    return make_run(folder, world=world, micro_batch_size=2, model=shape, **keys)


def _steps(engine: Any, count: int, options: argparse.Namespace) -> float:
    """Seconds of one step."""
    from ds_llama.selftest.tiny import global_batch, split
    from ds_llama.zero import world
    from ds_llama.zero.step import take_step

    size = world.world_size()
    start = time.perf_counter()
    for step in range(count):
        take_step(engine, split(global_batch(step, 2 * size), 2, world.rank(), size))
    return (time.perf_counter() - start) / count


def _timed(call: Callable[..., Any], into: Row, name: str) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*args)
        finally:
            into[name] = time.perf_counter() - start

    return run


def table(rows: list[Row]) -> str:
    """A line a kind of save, and how much of a save in the foreground the pause is."""
    lines = [f"{'save':12}" + "".join(f"{name:>14}" for name in COLUMNS)]
    middle = {}
    for kind in ("foreground", "background"):
        same = [row for row in rows if row["kind"] == kind]
        found = {name: statistics.median(r.get(name, 0.0) for r in same) for name in COLUMNS}
        middle[kind] = found["pause_s"]
        lines.append(f"{kind:12}" + "".join(f"{found[name]:14.3f}" for name in COLUMNS))
    size, alone = rows[0]["bytes"] / 2**20, rows[0]["idle_step_s"]
    share = middle["background"] / middle["foreground"]
    lines.append(f"{size:.0f} MiB a checkpoint, a step alone {alone:.3f} s")
    lines.append(f"the pause is {share:.2f} of that of a save in the foreground")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in {"world": 2, "stage": 2, "hidden": 512, "layers": 8, "trials": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--offload", default="none")
    parser.add_argument("--rank", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank(options.rank, options)
        return 0
    from own_ranks import rows_of_ranks  # beside this file, which tests read without running it

    with tempfile.TemporaryDirectory(prefix="ds-llama-save-") as folder:
        rows = rows_of_ranks(__file__, Path(folder), options.world)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
