"""ZeRO-Infinity, hpZ and Twin-Flow train as the hand-written loop does; lossy ones as they say."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import safe_get_full_fp32_param

from ds_llama.selftest.cells import Cell
from ds_llama.trainer.build import construct
from ds_llama.zero import engine as engines
from ds_llama.zero import world
from ds_llama.zero.register import register
from ds_llama.zero.step import take_step
from tests.distributed.cells.checkpoint import goes_on
from tests.distributed.cells.equivalence import equals
from tests.distributed.runs import global_batch, make_run, split

CPU, NVME = {"device": "cpu"}, {"device": "nvme"}
SWAPPED = re.compile("exp_avg_sq|exp_avg|gradient|param|tensor")


@dataclass
class Trained:
    numbers: list[float]
    parameters: dict[str, torch.Tensor]
    swapped: set[str]

    def equals(self, other: Trained) -> bool:
        """Bit for bit."""
        same = [torch.equal(p, other.parameters[n]) for n, p in self.parameters.items()]
        return self.numbers == other.numbers and all(same)


def stage3(**keys: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": 3, **keys}}


def trained(
    folder: Path, *, precision: str, vocab_size: int, lr: float = 1e-3, **keys: Any
) -> Trained:
    """Losses, norms and fp32 parameters after two updates; what went to NVMe, by its kind.

    vocab_size: DeepSpeed swaps nothing below 1 MiB (swap_tensor/utils.py:17), so that half of the
    embedding has to be as much.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("offload_optimizer", "offload_param"):
        if keys.get(name, {}).get("device") == "nvme":
            keys[name] = {"nvme_path": str(folder), **keys[name]}
    size = world.world_size()
    run = make_run(
        folder,
        precision=precision,
        accumulation=2,
        world=size,
        deepspeed={"zero_optimization": {"stage": 3, **keys}},
        model={"vocab_size": vocab_size},
    )
    engine = register(construct(run), run)
    engines.set_lr(engine, lr)
    numbers = []
    for step in range(2):
        window = split(global_batch(step, 4 * size), 2, world.rank(), size)
        result = take_step(engine, window)
        numbers += [result.loss, result.grad_norm]
    parameters = {
        n: safe_get_full_fp32_param(p).clone() for n, p in engine.module.named_parameters()
    }
    swapped = {SWAPPED.search(path.name).group() for path in folder.rglob("*.swp")}
    return Trained(numbers, parameters, swapped)


def infinity(folder: Path) -> None:
    """On NVMe the same bits come out as on the host, whose equality with plain torch is shown."""
    train = partial(trained, precision="fp32", vocab_size=8192, sub_group_size=300_000)
    pipelined = {**NVME, "pipeline_read": True, "pipeline_write": True, "buffer_count": 8}
    plain = train(folder / "host", offload_optimizer=CPU)
    assert not plain.swapped
    optimizer = train(folder / "optimizer", offload_optimizer=pipelined)
    assert optimizer.equals(plain)
    assert optimizer.swapped == {"exp_avg", "exp_avg_sq", "gradient", "tensor"}
    every = {"offload_optimizer": NVME, "offload_param": {**NVME, "max_in_cpu": 0}}
    both = train(folder / "all", **every)
    assert both.equals(plain)
    assert both.swapped == {*optimizer.swapped, "param"}
    assert not train(folder / "lr", lr=1.01e-3, **every).equals(plain)


def zenflow_scrambles(folder: Path) -> None:
    """Why zenflow-scrambles-weights is an error: matrices differ as soon as DeepSpeed has them."""
    run = make_run(folder, world=world.world_size())
    model = construct(run)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    intervals = {"select_strategy": "step", "select_interval": 2, "update_interval": 2}
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
        "zero_optimization": {
            "stage": 2,
            "offload_optimizer": {**CPU, "pin_memory": False},
            "zenflow": {"topk_ratio": 0.1, **intervals},
        },
    }
    engines.create(model, config, model_parameters=list(model.parameters()))
    kept = {name: torch.equal(p, before[name]) for name, p in model.named_parameters()}
    assert kept == {name: p.dim() == 1 for name, p in before.items()}


def infinity_in_bf16(folder: Path) -> None:
    train = partial(trained, precision="bf16", vocab_size=16384)
    plain = train(folder / "host", offload_optimizer=CPU)
    param = {**NVME, "max_in_cpu": 0}
    both = train(folder / "all", offload_optimizer=NVME, offload_param=param)
    assert both.equals(plain)
    assert "param" in both.swapped


@dataclass(frozen=True)
class Keyed(Cell):
    """A cell of the selftest with more keys in its zero_optimization."""

    keys: tuple[tuple[str, Any], ...] = ()

    def deepspeed(self, folder: str = ".") -> dict[str, Any]:
        tree = super().deepspeed(folder)
        return tree | {"zero_optimization": {**tree["zero_optimization"], **dict(self.keys)}}


def hierarchical(folder: Path, *, precision: str) -> None:
    equals(folder, cell=Keyed(precision, 3, keys=(("zero_hpz_partition_size", 2),)))


def twin_flow(folder: Path, *, device: str) -> None:
    """`device`: what DeepSpeed takes for the accelerator; "cpu" makes one optimizer of both."""
    accelerator = get_accelerator()
    accelerator._name = device  # stage3.py:1106 puts the device's share there
    try:
        offload = {"offload_optimizer": {**CPU, "ratio": 0.5}, "sub_group_size": 10_000}
        equals(folder, cell=Keyed("fp32", 3, keys=tuple(offload.items())))
    finally:
        accelerator._name = "cpu"


def twin_flow_goes_on(folder: Path) -> None:
    accelerator = get_accelerator()
    accelerator._name = "cpu:0"
    try:
        offload = {"offload_optimizer": {**CPU, "ratio": 0.5}, "sub_group_size": 10_000}
        zero = {"zero_optimization": {"stage": 3, **offload}}
        goes_on(folder, stage=3, precision="fp32", deepspeed=zero)
    finally:
        accelerator._name = "cpu"


CELLS: dict[str, tuple[tuple[int, ...], Callable[[Path], None]]] = {
    "nvme-fp32": ((2,), infinity),
    "nvme-bf16": ((2,), infinity_in_bf16),
    "zenflow-scrambles": ((2,), zenflow_scrambles),
    "hpz-fp32": ((2, 4), partial(hierarchical, precision="fp32")),
    # Four shares that are added up in bf16 depend on the order, at stage 3 as it is too.
    "hpz-bf16": ((2,), partial(hierarchical, precision="bf16")),
    "twin-flow-as-one": ((2,), partial(twin_flow, device="cpu")),
    "twin-flow-goes-on": ((2,), twin_flow_goes_on),
    "twin-flow-as-two": ((2,), partial(twin_flow, device="cpu:0")),
}
