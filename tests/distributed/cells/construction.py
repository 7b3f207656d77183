"""Plain, meta and zero.Init construction give the same weights at any world size."""

from __future__ import annotations

import hashlib
from pathlib import Path

import deepspeed
import torch

from ds_llama.model import rope
from ds_llama.trainer.build import construct
from ds_llama.zero import world
from tests.distributed.runs import make_run

# Weights of the tiny model at seed 0, as plain construction at world 1 made them: the same in
# every cell, at every world size, in every release.
EXPECTED: dict[str, str] = {}


def digest(model: torch.nn.Module) -> str:
    """SHA-256 over names, dtypes and full values of all parameters."""
    found = hashlib.sha256()
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            data = parameter.data.detach().cpu().contiguous()
            found.update(f"{name} {data.dtype} {tuple(data.shape)}".encode())
            found.update(data.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def same_weights(folder: Path) -> None:
    for precision in ("fp32", "bf16"):
        for tied in (False, True):
            run = make_run(
                folder,
                stage=3,
                precision=precision,
                world=world.world_size(),
                model={"tie_word_embeddings": tied, "vocab_size": 131},
            )
            digests = {
                how: digest(construct(run, how=how)) for how in ("plain", "meta", "zero.Init")
            }
            assert len(set(digests.values())) == 1, digests
            key = f"{precision}-{'tied' if tied else 'untied'}"
            assert digests["plain"] == EXPECTED.get(key, digests["plain"]), (key, digests["plain"])
            if world.rank() == 0:
                print("DIGEST", key, digests["plain"], flush=True)


def another_seed_differs(folder: Path) -> None:
    size = world.world_size()
    first, second = (
        digest(construct(make_run(folder, stage=3, world=size, train={"steps": 1, "seed": seed})))
        for seed in (0, 1)
    )
    assert first != second


def rotary_tables_are_exact(folder: Path) -> None:
    model = {
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    }
    for how in ("plain", "meta", "zero.Init"):
        run = make_run(folder, stage=3, precision="bf16", world=world.world_size(), model=model)
        assert rope.inexact_tables(construct(run, how=how)) == [], how


CELLS = {
    "same-weights": ((1, 2, 4), same_weights),
    "another-seed-differs": ((2,), another_seed_differs),
    "rotary-tables": ((1, 2), rotary_tables_are_exact),
}
