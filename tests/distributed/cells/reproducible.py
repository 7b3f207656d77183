"""`train.reproducible`: the same bits at every stage, offload and world size.

What a run comes to is its losses and gradient norms, exactly, and the checksums of weights, masters
and moments. Each world writes them down; `test_cells.py` compares the worlds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.nn import functional

from ds_llama.checkpoint import checksums
from ds_llama.checkpoint.resume import resume
from ds_llama.trainer.build import construct
from ds_llama.zero import engine as engines
from ds_llama.zero import exact, world
from ds_llama.zero.register import register
from ds_llama.zero.step import take_step
from tests.distributed.cells.checkpoint import commit
from tests.distributed.runs import global_batch, make_run

STEPS, ROWS, MICRO = 3, 8, 2
BITS = "bits.json"
Bits = dict[str, Any]


def engine_for(folder: Path, stage: int, precision: str, **more: Any) -> Any:
    sizes = {"micro_batch_size": MICRO, "global_batch_size": ROWS}
    mode = {"steps": STEPS, **sizes, "reproducible": True}
    run = make_run(folder, stage=stage, precision=precision, train=mode, **more)
    return register(construct(run), run)


def train(engine: Any, first: int = 0, last: int = STEPS, *, outgrow: bool = False) -> Bits:
    """Updates, each from four micro-batches, dealt to ranks as the loader deals them.

    outgrow: give the gradients of the last step units that are far too small.
    """
    size, steps = world.world_size(), []
    for step in range(first, last):
        if outgrow and step == last - 1:
            exponents = engine.ds_llama.exact.exponents
            exponents.update({name: log2 - 16 for name, log2 in exponents.items()})
        batch = global_batch(step, ROWS)
        mine = range(world.rank() * MICRO, ROWS, size * MICRO)
        window = [{k: v[at : at + MICRO] for k, v in batch.items()} for at in mine]
        result = take_step(engine, window)
        assert result is not None
        assert result.applied
        assert result.clip_coef < 1.0, "the norm has to matter"
        steps.append((result.loss.hex(), result.grad_norm.hex()))
    held = checksums.compute(engine)["parameters"]
    # At stage 0 the weights are the masters.
    return {"steps": steps, "held": {n: {"master": k["weight"], **k} for n, k in held.items()}}


def bits_of(folder: Path, stage: int, precision: str, **more: Any) -> Bits:
    return train(engine_for(folder, stage, precision, **more))


def same_bits(folder: Path, precision: str) -> None:
    stages = (0, 1, 2, 3) if precision == "fp32" else (1, 2, 3)
    found = {stage: bits_of(folder / str(stage), stage, precision) for stage in stages}
    if world.rank() == 0:
        (folder / BITS).write_text(json.dumps(found[3]))
    assert all(bits == found[3] for bits in found.values()), difference(found)


def same_bits_offloaded(folder: Path) -> None:
    places = {"none": 2, "optimizer": 2, "all": 3}
    found = {
        place: bits_of(folder / place, stage, "bf16", offload=place)
        for place, stage in places.items()
    }
    assert found["none"] == found["optimizer"] == found["all"], difference(found)


def same_bits_when_outgrown(folder: Path) -> None:
    """Units that a step's gradients outgrow are replaced, and the step is made once."""
    found = {}
    for stage in (0, 1, 2, 3):
        engine = engine_for(folder / str(stage), stage, "fp32")
        found[stage] = train(engine, outgrow=True)
        assert engines.adam_step(engine) == STEPS
        assert engine.skipped_steps == (0 if stage == 0 else 2), "the first window, and this one"
    assert all(bits == found[3] for bits in found.values()), difference(found)
    usual = bits_of(folder / "usual", 2, "fp32")
    assert found[2]["steps"][:2] == usual["steps"][:2]
    assert found[2]["steps"][2][0] == usual["steps"][2][0], "the loss of the same weights"


def same_bits_after_a_resume(folder: Path) -> None:
    through = bits_of(folder / "through", 2, "bf16")
    engine = engine_for(folder / "first", 2, "bf16")
    train(engine, 0, 2)
    saved = commit(engine, folder, 2)
    engine = engine_for(folder / "second", 2, "bf16")
    resume(engine, saved, engine.ds_llama.resolved)
    found = train(engine, 2, 3)
    assert engine.skipped_steps == 1, "before the checkpoint"
    assert found == through | {"steps": through["steps"][2:]}


def difference(found: dict[Any, Bits]) -> str:
    return "\n".join(f"{name}: {bits['steps']}" for name, bits in found.items())


@contextmanager
def without_grid() -> Iterator[None]:
    """Gradients as they come; their largest value is still looked at."""
    rounded = exact.ExactSums._rounded

    def as_it_comes(self: Any, index: int, name: str, gradient: torch.Tensor) -> torch.Tensor:
        rounded(self, index, name, gradient)
        return gradient

    with mock.patch.object(exact.ExactSums, "_rounded", as_it_comes):
        yield


@contextmanager
def with_deepspeeds_clipping() -> Iterator[None]:
    apply = exact.apply

    def applied(engine: Any, micro_batches: int) -> exact.ExactSums:
        sums = apply(engine, micro_batches)
        engine.optimizer.clip_grad = engine.gradient_clipping()
        return sums

    with (
        mock.patch.object(exact, "apply", applied),
        mock.patch.object(exact.ExactSums, "_clip", return_value=None),
    ):
        yield


@contextmanager
def with_torchs_linear() -> Iterator[None]:
    """Torch's own until stage 3, which comes last, replaces it."""
    apply = exact.apply

    def applied(engine: Any, micro_batches: int) -> exact.ExactSums:
        linear = functional.linear
        sums = apply(engine, micro_batches)
        functional.linear = linear
        return sums

    with (
        mock.patch.object(functional, "linear", torch._C._nn.linear),
        mock.patch.object(exact, "apply", applied),
    ):
        yield


def sabotaged(folder: Path, sabotage: Callable[[], Any], **more: Any) -> None:
    with sabotage():
        found = [bits_of(folder / str(stage), stage, **more) for stage in (1, 2, 3)]
    assert not found[0] == found[1] == found[2], f"{sabotage.__name__} changes nothing"


CELLS = {
    **{f"bits-{p}": ((1, 2, 4), partial(same_bits, precision=p)) for p in ("fp32", "bf16")},
    "outgrown": ((2,), same_bits_when_outgrown),
    "resumed": ((2,), same_bits_after_a_resume),
    "bits-offloaded": ((2,), same_bits_offloaded),
    "twin-grid": ((2,), partial(sabotaged, sabotage=without_grid, precision="fp32")),
    "twin-clipping": (
        (2,),
        partial(sabotaged, sabotage=with_deepspeeds_clipping, precision="fp32"),
    ),
    "twin-linear": (
        (2,),
        partial(
            sabotaged,
            sabotage=with_torchs_linear,
            precision="bf16",
            model={"attention_bias": True},
        ),
    ),
}
