"""Every layout's checkpoint taken up by every other, at other world sizes and batches.

    python -m tests.campaigns.resume_anywhere [--worlds 1,2,4] [--precision bf16,fp32]
        [--layouts 1,3+all]  those alone
        [--only nvme]        pairs of which one name has the word in it

A world saves one checkpoint per layout after two steps, and says its next two losses. Then each
world takes up all of them in each layout: `resume` compares the checksums of every parameter,
master and moment; here the next losses are compared with those of the run that was not stopped, and
what a rank held while loading with its share. A line a pair; exits with 1 if any pair fails.

DeepSpeed swaps nothing below 1 MiB, which is lowered here, so that a tiny model's matrices are on
NVMe; its norms stay in memory.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tests.distributed import world as launching

SAMPLES = 4
LITTLE = {"aio": {"block_size": 4096}}
LAYOUTS: dict[str, dict[str, Any]] = {
    "1": {"stage": 1},
    "2+optimizer": {"stage": 2, "offload": "optimizer"},
    "3": {"stage": 3},
    "3+optimizer": {"stage": 3, "offload": "optimizer"},
    "3+all": {"stage": 3, "offload": "all"},
    "3+nvme": {"stage": 3, "offload": "nvme"},
    "3+nvme-all": {"stage": 3, "offload": "nvme-all"},
}
MORE = {"fp32": {"0": {"stage": 0}}, "bf16": {"2": {"stage": 2}}}
SHORT = ("1", "3+all")
# All odd: no world divides the embedding, a matrix of the MLP or a norm, nor a row of them.
MODEL = {
    "vocab_size": 131,
    "hidden_size": 65,
    "head_dim": 16,
    "intermediate_size": 67,
    "num_hidden_layers": 1,
}
FIRST, LATER = 1e-5, {"bf16": 2e-3, "fp32": 1e-5}  # relative, of the next loss and the one after
SMALL = 16 << 10  # bytes: of norms, counters and whatever is not a parameter
LIMIT_S = 4 * 3600.0  # of a launch, which takes up some 200 checkpoints
OTHER_BATCH = "3"  # is also taken up with micro-batches of 1, accumulated


def layouts(precision: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Names and keys of the layouts of a precision; `names`: those alone, if there are any."""
    found = {**MORE[precision], **LAYOUTS}
    return {name: keys for name, keys in found.items() if not names or name in names}


# --- on every rank ---------------------------------------------------------------------------


def saved(folder: Path, precision: str, size: int, names: Sequence[str]) -> None:
    """Save every layout of a precision; every rank writes what `take_up` has to know."""
    from ds_llama.zero import world

    for row in _save(folder, precision, names, size):
        with (folder / f"save-{size}-{world.rank()}.jsonl").open("a") as out:
            print(json.dumps(row), file=out)


def rank(what: str, folder: Path, precisions: list[str], names: Sequence[str], only: str) -> None:
    """Save or take up everything as one rank of a launch; rank 0 writes a line a pair."""
    from ds_llama.selftest.compare import remember_processor
    from ds_llama.zero import world

    remember_processor()
    world.join()
    gc.collect()
    gc.freeze()  # an Account collects garbage, and need not look at all of torch
    size = world.world_size()
    with (folder / f"{what}-{size}-{world.rank()}.jsonl").open("w") as out:
        for precision in precisions:
            rows = (
                _save(folder, precision, names, size)
                if what == "save"
                else take_up(folder, precision, names, size, only)
            )
            for row in rows:
                if world.rank() == 0:
                    print(json.dumps(row), file=out, flush=True)
    import torch

    torch.distributed.destroy_process_group()


@contextmanager
def swapping_little() -> Iterator[None]:
    """Engines made inside swap from 4 KiB on, not from 1 MiB, where their aio blocks allow it."""
    from deepspeed.runtime.swap_tensor import optimizer_utils, partitioned_param_swapper

    with (
        mock.patch.object(optimizer_utils, "MIN_AIO_BYTES", 1024),
        mock.patch.object(partitioned_param_swapper, "MIN_AIO_BYTES", 1024),
    ):
        yield


def _engine(folder: Path, size: int, precision: str, micro: int, seed: int, keys: Any) -> Any:
    from ds_llama.selftest.cells import Cell
    from ds_llama.trainer.build import construct
    from ds_llama.zero.register import register
    from tests.distributed.runs import make_run

    (folder / "swap").mkdir(parents=True, exist_ok=True)
    if keys.get("offload", "none").startswith("nvme"):
        tree = Cell(precision, 3, keys["offload"]).deepspeed(str(folder))
        # A parameter a partition: DeepSpeed misreads gradients there that begin elsewhere than at
        # a multiple of 512 bytes, since direct I/O refuses it and nothing looks.
        zero = tree["zero_optimization"] | {"sub_group_size": 1}
        keys = keys | {"deepspeed": {"zero_optimization": zero, **LITTLE}}
    train = {"steps": 4, "seed": seed, "micro_batch_size": micro, "global_batch_size": SAMPLES}
    run = make_run(
        folder,
        world=size,
        micro_batch_size=micro,
        precision=precision,
        train=train,
        model=MODEL,
        **keys,
    )
    with swapping_little():
        return register(construct(run), run)


def _losses(engine: Any, micro: int, size: int, first: int, last: int) -> list[float]:
    from ds_llama.zero import world
    from ds_llama.zero.step import take_step
    from tests.distributed.runs import global_batch, split

    windows = (
        split(global_batch(step, SAMPLES), micro, world.rank(), size)
        for step in range(first, last + 1)
    )
    return [take_step(engine, window).loss for window in windows]


def _save(folder: Path, precision: str, names: Sequence[str], size: int) -> Any:
    from ds_llama.checkpoint.save import save

    for name, keys in layouts(precision, names).items():
        place = folder / f"{precision}-{size}-{name}"
        engine = _engine(place, size, precision, SAMPLES // size, 0, keys)
        _losses(engine, SAMPLES // size, size, 1, 2)
        state = {"step": 2, "tokens_seen": 0, "samples_seen": 2 * SAMPLES}
        step = save(engine, place / "checkpoints", 2, state, engine.ds_llama.resolved)
        losses = _losses(engine, SAMPLES // size, size, 3, 4)
        yield {"precision": precision, "saved": [size, name], "step": str(step), "losses": losses}
        _forget(engine)


def take_up(folder: Path, precision: str, names: Sequence[str], size: int, only: str = "") -> Any:
    """A row a pair of what was saved in `folder` and of this world's layouts.

    only: pairs of which one layout has it in its name.
    """
    rows = [
        json.loads(line)
        for path in sorted(folder.glob("save-*-0.jsonl"))
        for line in path.read_text().splitlines()
    ]
    for source in (row for row in rows if row["precision"] == precision):
        for name, keys in layouts(precision, names).items():
            micros = {SAMPLES // size, *([1] if name == OTHER_BATCH else [])}
            wanted = only in name or only in source["saved"][1]
            for micro in sorted(micros) if wanted else ():
                place = folder / "taken-up" / f"{size}-{name}"
                row = {"precision": precision, "from": source["saved"], "to": [size, name, micro]}
                started = time.perf_counter()
                try:
                    row |= _pair(place, size, precision, micro, keys, source)
                except Exception:
                    row["error"] = traceback.format_exc()
                yield row | {"seconds": time.perf_counter() - started}


def _pair(place: Path, size: int, precision: str, micro: int, keys: Any, source: Any) -> Any:
    from ds_llama.checkpoint import ranks
    from ds_llama.checkpoint.resume import resume
    from ds_llama.measure.accounting import Account

    # Another seed: what is not loaded is not what was saved.
    engine = _engine(place, size, precision, micro, 1, keys)
    account = Account("cpu")
    with account:
        account.track(p for p in engine.module.parameters())
        resume(engine, source["step"], engine.ds_llama.resolved)
    losses = _losses(engine, micro, size, 3, 4)
    largest = max(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    load = next(phase.total for phase in account.phases if phase.name == "restore")
    beyond = load.peak_bytes - load.now_bytes
    _forget(engine)
    gaps = [abs(a / b - 1) for a, b in zip(losses, source["losses"], strict=True)]
    return {"gaps": gaps, "beyond": max(ranks.gather(beyond)), "largest": 4 * largest}


def _forget(engine: Any) -> None:
    from ds_llama.zero import engine as engines

    engines.destroy(engine)
    gc.collect()


# --- the driver ------------------------------------------------------------------------------


def campaign(
    folder: Path, worlds: list[int], precisions: list[str], names: Sequence[str], only: str = ""
) -> list[dict[str, Any]]:
    """A row a pair: its losses' relative distance, and the bytes beyond what stays held."""
    words = [str(folder), ",".join(precisions), ",".join(names), only]
    for what in ("save", "take-up"):
        for size in worlds:
            log = folder / f"{what}-{size}"
            call = ("--module", "tests.campaigns.resume_anywhere", "--rank", what, *words)
            code = launching.start(size, log, *call, timeout_s=LIMIT_S)
            if code:
                raise SystemExit(f"{what} at world {size}: {(log / 'log.txt').read_text()[-4000:]}")
    found = [path for path in sorted(folder.glob("take-up-*-0.jsonl"))]
    return [json.loads(line) for path in found for line in path.read_text().splitlines()]


def failed(row: dict[str, Any]) -> str | None:
    """Why a pair does not count as the same run."""
    if "error" in row:
        return str(row["error"]).strip().splitlines()[-1]
    first, later = row["gaps"]
    if first > FIRST or later > LATER[row["precision"]]:
        return f"losses are {first:.1e} and {later:.1e} off"
    if row["beyond"] > 2 * row["largest"] + SMALL:
        return f"held {row['beyond']} bytes besides its share"
    return None


def table(rows: list[dict[str, Any]]) -> str:
    """A line a pair, then how many of them failed."""
    lines = [
        f"{'':5} {'saved at':16} {'taken up at':20} {'next loss':>10} {'held KiB':>9} {'s':>6}"
    ]
    for row in rows:
        (was, name), (size, other, micro) = row["from"], row["to"]
        found = (row.get("gaps", [float("nan")])[0], row.get("beyond", float("nan")) / 1024)
        lines.append(
            f"{row['precision']:5} {f'{name} on {was}':16} {f'{other} on {size}, {micro}':20}"
            f" {found[0]:10.1e} {found[1]:9.0f} {row['seconds']:6.1f}  {failed(row) or ''}"
        )
    count = sum(failed(row) is not None for row in rows)
    return "\n".join([*lines, f"{len(rows)} pairs, {count} failed"])


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def main() -> int:
    """Run what the command line says and print the table."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--worlds", default="1,2,4")
    words.add_argument("--precision", default="bf16,fp32")
    words.add_argument("--layouts", default="")
    words.add_argument("--only", default="")
    given = words.parse_args()
    worlds = [int(size) for size in given.worlds.split(",")]
    with tempfile.TemporaryDirectory(prefix="ds-llama-resume-") as folder:
        precisions = given.precision.split(",")
        rows = campaign(Path(folder), worlds, precisions, _words(given.layouts), given.only)
    print(table(rows))
    return int(any(failed(row) for row in rows))


if __name__ == "__main__":
    arguments = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    if arguments[:1] == ["--rank"]:
        what, folder, precisions, names, only = arguments[1:]
        rank(what, Path(folder), precisions.split(","), _words(names), only)
    else:
        sys.exit(main())
