"""What import and export hold at their peak, beside one output shard and the largest tensor.

    python -m tests.campaigns.weights_memory [--short]

A model of 531 MB (--short: 58 MB) is written as a checkpoint of two ranks, as safetensors, as .bin
and as Meta's two parts; each is then exported or imported in a fresh process, whose resident memory
beyond what it had after its imports is read. The last row holds the whole model on purpose: it has
to be over the limit. A line a source; exits with 1 if one is over, or the last is not.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ds_llama.checkpoint import layout, offline, state
from ds_llama.commit import manifest
from ds_llama.config.model import LlamaConfig
from ds_llama.measure import memory
from ds_llama.weights.convert import convert_folder
from ds_llama.weights.folder import ModelFolder
from ds_llama.weights.skeleton import specs_of
from ds_llama.weights.write import write_folder
from tests.unit.weights.metas import name_of, part

ROOT = Path(__file__).parents[2]
FULL: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
}
SHORT = FULL | {"vocab_size": 16_000, "hidden_size": 256, "intermediate_size": 1024}
SHORT |= {"num_hidden_layers": 6, "num_attention_heads": 4}
TINY = {**SHORT, "vocab_size": 64, "num_hidden_layers": 1, "hidden_size": 64}
SHARD_BYTES = {"full": 64 << 20, "short": 16 << 20, "tiny": 1 << 20}
SIZES = {"full": FULL, "short": SHORT, "tiny": TINY}
# --- sources ---------------------------------------------------------------------------------


def _tensors(config: LlamaConfig) -> Iterator[tuple[str, torch.Tensor]]:
    for number, (name, spec) in enumerate(specs_of(config, torch.float32).items()):
        yield name, torch.full(spec.shape, 0.5 + number)


def checkpoint(config: LlamaConfig, folder: Path) -> None:
    """A step folder of stage 1 as two ranks leave it: one flat group, cut in the middle."""
    folder.mkdir()
    flat = torch.cat([tensor.view(-1) for _, tensor in _tensors(config)])
    half = -(-flat.numel() // 2)
    shapes, pieces, begin = [], [[], []], 0
    for index, (name, spec) in enumerate(specs_of(config, torch.float32).items()):
        shapes.append([name, list(spec.shape), True])
        for rank in range(2):
            first, last = max(begin, rank * half), min(begin + spec.numel, (rank + 1) * half)
            if first < last:
                pieces[rank].append((index, 0, first - rank * half, first - begin, last - first))
        begin += spec.numel
    for rank, own in enumerate(flat.split(half)):
        held = {"single_partition_of_fp32_groups": [own.clone()]}
        held["base_optimizer_state"] = {"state": {}}
        name = f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        torch.save({"optimizer_state_dict": held}, folder / name)
    ranks = [layout.written(rank, [half], own) for rank, own in enumerate(pieces)]
    content = {
        "format": state.FORMAT,
        "stage": 1,
        "dtype": "float32",
        "model": config.to_hf(),
        "run": {"model": {}, "data": {}},
        "parameter_order": [],
    }
    (folder / state.NAME).write_text(json.dumps(content))
    (folder / layout.NAME).write_bytes(layout.encode(layout.fold(shapes, ranks)))
    entries = manifest.entries(folder, [path.name for path in folder.iterdir()])
    meta = {"run_id": "none", "step": 1, "world_size": 2, "stage": 1}
    manifest.write(folder, folder.name, entries, meta)


def safetensors(config: LlamaConfig, folder: Path) -> None:
    held = dict(_tensors(config))
    specs = specs_of(config, torch.float32)
    write_folder(folder, config, specs, lambda name: [held[name]], max_shard_bytes=64 << 20)


def pickles(config: LlamaConfig, folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    files = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    held = list(_tensors(config))
    for number, file in enumerate(files):
        torch.save(dict(held[number::2]), folder / file)
    index = {name: files[number % 2] for number, (name, _) in enumerate(held)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))


def metas(config: LlamaConfig, folder: Path) -> None:
    folder.mkdir()
    for rank in range(2):
        held = ((name_of(name), tensor) for name, tensor in _tensors(config))
        own = {name: part(name, tensor, rank, 2, 1) for name, tensor in held}
        torch.save(own, folder / f"consolidated.{rank:02d}.pth")
    params = {"dim": config.hidden_size, "n_layers": config.num_hidden_layers}
    params |= {"n_heads": config.num_attention_heads, "norm_eps": 1e-5}
    (folder / "params.json").write_text(json.dumps(params))


def _hold_all(source: Path, out: Path, **_: Any) -> None:
    with ModelFolder(source) as folder:
        _ = [folder.read(name) for name in folder.names]


Act = Callable[..., Any]
ROWS: dict[str, tuple[Callable[[LlamaConfig, Path], None], Act]] = {
    "export of a checkpoint": (checkpoint, offline.export_step),
    "import of safetensors": (safetensors, convert_folder),
    "import of .bin": (pickles, convert_folder),
    "import of Meta's parts": (metas, convert_folder),
    "the whole model, on purpose": (safetensors, _hold_all),
}

# --- measuring -------------------------------------------------------------------------------


def limit(size: str) -> int:
    """Bytes of one output shard and the largest tensor."""
    largest = max(spec.num_bytes for spec in specs_of(_config(size), torch.float32).values())
    return SHARD_BYTES[size] + largest


def _config(size: str) -> LlamaConfig:
    return LlamaConfig.from_hf(SIZES[size])


def measured(row: str, size: str, folder: Path) -> dict[str, Any]:
    """One row in this process; a tiny model first, so that nothing is imported while measuring."""
    write, act = ROWS[row]
    with tempfile.TemporaryDirectory() as warm:
        write(_config("tiny"), Path(warm) / "step-00000001")
        act(Path(warm) / "step-00000001", Path(warm) / "out", max_shard_bytes=1 << 20)
    gc.collect()
    # What rows before this one have let go would be taken again without showing.
    ctypes.CDLL(None).malloc_trim(0)
    memory.reset_peak_rss()
    before, started = memory.process_memory(), time.perf_counter()
    source = folder / write.__name__ / "step-00000001"
    act(source, folder / f"out-{write.__name__}", max_shard_bytes=SHARD_BYTES[size])
    peak = (memory.process_memory().peak_rss_bytes or 0) - (before.rss_bytes or 0)
    return {"row": row, "peak_bytes": peak, "s": time.perf_counter() - started}


def campaign(folder: Path, size: str, *, processes: bool) -> list[dict[str, Any]]:
    """A row a source; in one fresh process for all of them unless `processes`."""
    for write in {write for write, _ in ROWS.values()}:
        (folder / write.__name__).mkdir()
        write(_config(size), folder / write.__name__ / "step-00000001")
    lots = [[row] for row in ROWS] if processes else [list(ROWS)]
    found = []
    for lot in lots:
        words = [sys.executable, "-m", "tests.campaigns.weights_memory", "--measure", str(folder)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        out = subprocess.run(
            [*words, size, *lot], env=environment, check=True, capture_output=True, text=True
        ).stdout
        found += [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return found


def failed(row: dict[str, Any], size: str) -> str | None:
    """Why a row does not count; the last one has to be over the limit."""
    over = row["peak_bytes"] > limit(size)
    if row["row"].startswith("the whole"):
        return None if over else "is not seen"
    return "over the limit" if over else None


def table(rows: list[dict[str, Any]], size: str) -> str:
    """A line a row."""
    total = 4 * _config(size).num_parameters
    head = f"{total / 1e6:.0f} MB of weights; a shard and the largest tensor: "
    lines = [head + f"{limit(size) / 1e6:.0f} MB", f"{'':30} {'peak MB':>9} {'s':>6}"]
    for row in rows:
        verdict = failed(row, size) or ""
        lines.append(f"{row['row']:30} {row['peak_bytes'] / 1e6:9.1f} {row['s']:6.1f}  {verdict}")
    return "\n".join(lines)


def main() -> int:
    """Run what the command line says and print the table."""
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--short", action="store_true")
    size = "short" if words.parse_args().short else "full"
    with tempfile.TemporaryDirectory(prefix="ds-llama-weights-") as folder:
        rows = campaign(Path(folder), size, processes=size == "full")
    print(table(rows, size))
    return int(any(failed(row, size) for row in rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        place, size, *rows = sys.argv[2:]
        for row in rows:
            print(json.dumps(measured(row, size, Path(place))), flush=True)
    else:
        sys.exit(main())
