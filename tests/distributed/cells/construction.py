"""Plain, meta and zero.Init construction give the same weights at any world size."""

from __future__ import annotations

import hashlib
from pathlib import Path

import deepspeed
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from ds_llama.trainer.build import construct
from ds_llama.zero import world
from ds_llama.zero.register import resolve_here
from tests.distributed.runs import MODEL, make_run

# Weights of the tiny model at seed 0, as plain construction at world 1 made them: the same in
# every cell, at every world size, in every release.
EXPECTED = {
    "fp32-untied": "7d8ba9ae2d66691f59b32ec50a96046ba680e6a352ce05719f33d4d875a5f271",
    "fp32-tied": "bcb3990ac887364374fc950bfce24fb0e9322b686f470fa3e689eb1ab3d0cfc6",
    "bf16-untied": "e1a8a41222f5fcf03d092486a108e9adc93baf97662a3507c822b5c979fc0420",
    "bf16-tied": "a85e6784cc0d3c9ce14651d6a7813de780a1b2c9ca25a45fd55ca370d5aa8dcd",
}


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
            assert digests["plain"] == EXPECTED[key], (key, digests["plain"])


def another_seed_differs(folder: Path) -> None:
    size = world.world_size()
    first, second = (
        digest(construct(make_run(folder, stage=3, world=size, train={"steps": 1, "seed": seed})))
        for seed in (0, 1)
    )
    assert first != second


def rotary_tables_are_exact(folder: Path) -> None:
    """Against transformers' table of the same config, where bf16 would be 1 rad off."""
    scaling = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    model = {"max_position_embeddings": 8192, "rope_parameters": scaling}
    positions = torch.arange(8192)
    theirs = LlamaRotaryEmbedding(LlamaConfig(**MODEL | model))
    expected, _ = theirs(torch.zeros(1, 1, 1), positions[None])
    for how in ("plain", "meta", "zero.Init"):
        run = make_run(folder, stage=3, precision="bf16", world=world.world_size(), model=model)
        built = construct(run, how=how)
        cos, _ = built.model.rotary(0, 8192, world.device())
        assert cos.dtype == torch.float32
        torch.testing.assert_close(cos[:, 0], expected[0, :, : cos.shape[-1]], rtol=0, atol=1e-6)


def zero_init_rounds_tables(folder: Path) -> None:
    """Twin: a float table that is made under zero.Init is what the facts say, rounded."""
    run = make_run(folder, stage=3, precision="bf16", world=world.world_size())
    with deepspeed.zero.Init(config_dict_or_path=resolve_here(run).deepspeed):
        exponents = torch.arange(0, 16, 2, dtype=torch.float32)
        rounded = 1.0 / 10000.0 ** (exponents / 15)
    exact = 1.0 / 10000.0 ** (torch.arange(0, 16, 2, dtype=torch.float32) / 15)
    assert (rounded.float() / exact - 1).abs().max() > 1e-3


CELLS = {
    "same-weights": ((1, 2, 4), same_weights),
    "another-seed-differs": ((2,), another_seed_differs),
    "rotary-tables": ((1, 2), rotary_tables_are_exact),
    "twin-rotary-tables": ((1,), zero_init_rounds_tables),
}
