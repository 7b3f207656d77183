"""The small runs and batches that every cell trains on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ds_llama.config import load_run
from ds_llama.config.run import Run
from ds_llama.selftest.cells import Cell

VOCAB, TOKENS = 128, 32
MODEL = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}


# Adam divides: an error in a gradient close to zero grows by lr / eps, which is 10 here and 1e5 at
# the default of 1e-8, which left up to 3.8e-6 between fp32 parameters. Nine of ten are larger.
OPTIMIZER: dict[str, Any] = {
    "lr": 1e-3,
    "eps": 1e-4,
    "weight_decay": 0.1,
    "schedule": "constant",
}


def make_run(
    folder: Path,
    *,
    stage: int = 2,
    precision: str = "fp32",
    offload: str = "none",
    accumulation: int = 1,
    world: int = 1,
    micro_batch_size: int = 2,
    model: dict[str, Any] | None = None,
    deepspeed: dict[str, Any] | None = None,
    **sections: Any,
) -> Run:
    """A run over the tiny model; `deepspeed` adds top-level keys to its DeepSpeed JSON."""
    cell = Cell(precision, stage, offload)
    return load_run(
        {
            "model": MODEL | (model or {}),
            "data": {"train": "unused", "sequence_length": TOKENS},
            "optimizer": {"lr": 1e-3, "weight_decay": 0.1, "schedule": "constant"},
            "train": {
                "steps": 4,
                "micro_batch_size": micro_batch_size,
                "global_batch_size": micro_batch_size * accumulation * world,
            },
            "deepspeed": cell.deepspeed(str(folder)) | (deepspeed or {}),
            "output": str(folder),
            **sections,
        }
    )


def global_batch(step: int, rows: int) -> dict[str, torch.Tensor]:
    """Rows of random tokens with unequal numbers of valid labels; the same on every rank."""
    generator = torch.Generator().manual_seed(1000 + step)
    ids = torch.randint(0, VOCAB, (rows, TOKENS), generator=generator)
    labels = ids.clone()
    for row in range(rows):
        masked = (7 * row + 3 * step) % (TOKENS // 2)
        labels[row, :masked] = -100
    return {"input_ids": ids, "labels": labels}


def split(
    batch: dict[str, torch.Tensor], micro_batch_size: int, rank: int, world: int
) -> list[dict[str, torch.Tensor]]:
    """This rank's micro-batches of a global batch, in order; everyone's with rank 0, world 1."""
    rows = batch["input_ids"].shape[0]
    per_rank = rows // world
    own = {key: value[rank * per_rank : (rank + 1) * per_rank] for key, value in batch.items()}
    return [
        {key: value[start : start + micro_batch_size] for key, value in own.items()}
        for start in range(0, per_rank, micro_batch_size)
    ]
