"""What a rank holds while pretrained weights are loaded under ZeRO-3, beside `from_pretrained`.

    python -m tests.campaigns.pretrained_memory [--worlds 2,4] [--short]

A model of 401 MB in bf16 (--short: 69 MB) lies in shards of 64 MiB (16 MiB). Each world loads it in
fresh processes, once by `construct` of a run that names it, once by transformers' `from_pretrained`
with the same DeepSpeed JSON. Read on every rank: its resident memory beyond what it had after its
imports, at the peak, and the bytes of its share. A line a way and world, of the rank that held
most; exits with 1 if `construct` held more than its share and one shard.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.distributed import world as launching

FULL: dict[str, Any] = {
    "vocab_size": 16_000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 10,
    "num_attention_heads": 16,
    "max_position_embeddings": 64,
}
# Matrices above 1 MiB, as models have them: smaller ones stay in glibc's heap (zero/heap.py).
SHORT = FULL | {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 3}
SHORT |= {"vocab_size": 4000, "num_attention_heads": 12}
TINY = {**SHORT, "vocab_size": 64, "num_hidden_layers": 1}
SHARD_BYTES = {"full": 64 << 20, "short": 16 << 20, "tiny": 16 << 20}
SIZES = {"full": FULL, "short": SHORT, "tiny": TINY}
WAYS = ("construct", "from_pretrained")


def write(folder: Path, size: str) -> None:
    """A Hugging Face folder of such a model, in bf16."""
    import torch

    from ds_llama.config.model import LlamaConfig
    from ds_llama.weights.skeleton import specs_of
    from ds_llama.weights.write import write_folder

    config = LlamaConfig.from_hf(SIZES[size])
    specs = specs_of(config, torch.bfloat16)
    write_folder(
        folder,
        config,
        specs,
        lambda name: [torch.full(specs[name].shape, 0.01)],
        max_shard_bytes=SHARD_BYTES[size],
    )


# --- on every rank ---------------------------------------------------------------------------


def rank(way: str, size: str, folder: Path) -> None:
    """Load once in small, to have imported everything, then measure the real one."""
    import torch

    from ds_llama.measure import memory
    from ds_llama.zero import world

    torch.set_num_threads(1)
    world.join()
    act = {"construct": _construct, "from_pretrained": _from_pretrained}[way]
    act(folder / "tiny", folder)
    gc.collect()
    torch.distributed.barrier()
    memory.reset_peak_rss()
    before, started = memory.process_memory().rss_bytes or 0, time.perf_counter()
    model = act(folder / size, folder)
    seconds = time.perf_counter() - started
    peak = (memory.process_memory().peak_rss_bytes or 0) - before
    share = sum(p.ds_tensor.nbytes for p in model.parameters())
    row = {"way": way, "world": world.world_size(), "share": share, "peak": peak, "s": seconds}
    (folder / f"{way}-{world.world_size()}-{world.rank()}.json").write_text(json.dumps(row))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _run(source: Path, folder: Path) -> Any:
    from ds_llama.config import load_run
    from ds_llama.zero import world
    from tests.distributed.runs import make_run

    run = make_run(folder / "run", stage=3, precision="bf16", world=world.world_size())
    return load_run(run.model_dump(mode="json") | {"model": {"pretrained": str(source)}})


def _construct(source: Path, folder: Path) -> Any:
    from ds_llama.trainer.build import construct

    return construct(_run(source, folder))


def _from_pretrained(source: Path, folder: Path) -> Any:
    import torch
    from transformers import LlamaForCausalLM
    from transformers.integrations import HfDeepSpeedConfig

    from ds_llama.zero.register import resolve_here

    config = HfDeepSpeedConfig(resolve_here(_run(source, folder)).deepspeed)  # while it lives
    model = LlamaForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    del config
    return model


# --- the driver ------------------------------------------------------------------------------


def campaign(folder: Path, worlds: list[int], size: str) -> list[dict[str, Any]]:
    """A row a world and way: the rank that held most beyond its share."""
    write(folder / "tiny", "tiny")
    write(folder / size, size)
    rows = []
    for count in worlds:
        for way in WAYS:
            log = folder / f"log-{way}-{count}"
            module = "tests.campaigns.pretrained_memory"
            words = ("--module", module, "--rank", way, size, str(folder))
            if launching.start(count, log, *words):
                raise SystemExit(f"{way} at {count}: {(log / 'log.txt').read_text()[-4000:]}")
            found = [json.loads(p.read_text()) for p in folder.glob(f"{way}-{count}-*.json")]
            rows.append(max(found, key=lambda row: row["peak"] - row["share"]))
    return rows


def failed(row: dict[str, Any], size: str) -> bool:
    """Whether our way held more than it may; transformers' is there to compare with."""
    return row["way"] == "construct" and row["peak"] > row["share"] + SHARD_BYTES[size]


def table(rows: list[dict[str, Any]], size: str) -> str:
    """A line a row."""
    lines = [f"{'':18} {'world':>5} {'share MB':>9} {'+ shard':>9} {'peak MB':>9} {'s':>6}"]
    for row in rows:
        share, peak = row["share"] / 1e6, row["peak"] / 1e6
        lines.append(
            f"{row['way']:18} {row['world']:5} {share:9.1f} "
            f"{share + SHARD_BYTES[size] / 1e6:9.1f} {peak:9.1f} {row['s']:6.1f}"
            + ("  over the limit" if failed(row, size) else "")
        )
    return "\n".join(lines)


def main() -> int:
    """Run what the command line says and print the table."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--worlds", default="2,4")
    words.add_argument("--short", action="store_true")
    given = words.parse_args()
    size = "short" if given.short else "full"
    with tempfile.TemporaryDirectory(prefix="ds-llama-pretrained-") as folder:
        rows = campaign(Path(folder), [int(count) for count in given.worlds.split(",")], size)
    print(table(rows, size))
    return int(any(failed(row, size) for row in rows))


if __name__ == "__main__":
    arguments = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    if arguments[:1] == ["--rank"]:
        rank(arguments[1], arguments[2], Path(arguments[3]))
    else:
        sys.exit(main())
