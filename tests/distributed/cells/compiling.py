"""`train.compile`: one graph for all blocks, without a break, that trains as the hand-written loop.

Graphs are traced, differentiated and partitioned as for inductor, and then run by torch's own
kernels ("aot_eager"), which takes a second instead of half a minute: what is counted is the same,
and what differs from the loop is the order of sums alone, so that the limits are those of
`equivalence`, which has their twins.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from deepspeed.utils import set_z3_leaf_modules
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch._inductor.exc import CppCompileError, InductorError

import ds_llama as dl
from ds_llama.errors import MachineError, ModelError
from ds_llama.evals.generate import generate
from ds_llama.model.attention import Attention
from ds_llama.model.mlp import MLP
from ds_llama.model.traits import Traits
from ds_llama.planner import memory as planner
from ds_llama.planner import traffic
from ds_llama.selftest import compare as comparing
from ds_llama.selftest import memory
from ds_llama.selftest.cells import Cell
from ds_llama.trainer.build import construct
from ds_llama.weights.export import export_model
from ds_llama.weights.folder import ModelFolder
from ds_llama.zero import compiling, world
from ds_llama.zero import engine as engines
from ds_llama.zero.register import register, resolve_here
from ds_llama.zero.step import take_step
from tests.distributed.runs import MODEL, global_batch, make_run, split


@contextmanager
def counted(backend: str = "aot_eager") -> Iterator[dict[str, Counter[str]]]:
    """Counters of torch's tracer, from nothing compiled to nothing kept."""
    torch._dynamo.reset()
    counters.clear()
    with mock.patch.object(compiling, "BACKEND", backend):
        yield counters
    torch._dynamo.reset()
    counters.clear()


def run_of(folder: Path, stage: int, precision: str = "fp32", **keys: Any) -> Any:
    size = world.world_size()
    train = {"steps": 4, "micro_batch_size": 2, "global_batch_size": 2 * size, "compile": True}
    keys.setdefault("train", train)
    return make_run(folder, stage=stage, precision=precision, world=size, **keys)


def compiled_run(folder: Path, **words: Any) -> Any:
    """What the selftest asks `make_run` for, and `train.compile`."""
    own = {name: words[name] for name in ("stage", "precision", "optimizer", "deepspeed")}
    rows = 2 * words["accumulation"] * world.world_size()
    train = {"steps": 4, "micro_batch_size": 2, "global_batch_size": rows, "compile": True}
    return run_of(folder, train=train, **own)


def trains_as_the_loop(folder: Path, *, stage: int, precision: str, **keys: Any) -> None:
    """And compiles one frame, whatever the number of blocks."""
    cell = Cell(precision, stage, **keys)
    with counted() as seen, mock.patch.object(comparing, "make_run", compiled_run):
        gaps = comparing.compare(cell, folder)
        assert seen["frames"] == {"total": 1, "ok": 1}, seen
        assert not seen["graph_break"], seen["graph_break"]
    assert gaps.within(cell.limits), f"{gaps}, limits {cell.limits}"


def breaks_where_blocks_are_no_leaves(folder: Path) -> None:
    """At stage 3 ZeRO's hooks break a block's graph around every module in it: here around four."""
    run, size = run_of(folder, 3, model={"num_hidden_layers": 1}), world.world_size()
    lower = mock.patch.object(
        compiling,
        "set_z3_leaf_modules",
        lambda model, _: set_z3_leaf_modules(model, [Attention, MLP]),
    )
    with counted("eager") as seen, lower:
        engine = register(construct(run), run)
        (batch,) = split(global_batch(0, 2 * size), 2, world.rank(), size)
        with torch.no_grad():
            engine(**batch)
        assert sum(seen["graph_break"].values()) >= 4, seen
        engines.destroy(engine)


def recomputed_written_and_exported(folder: Path) -> None:
    """Two graphs, with gradients and without; texts, names and exports as of blocks as they are."""
    size, sections = world.world_size(), {"activation_checkpointing": {}}
    run = run_of(folder, 3, deepspeed=sections)
    said = io.StringIO()
    with counted() as seen, ExitStack() as stack, redirect_stderr(said):
        engine = register(construct(run), run)
        stack.callback(engines.destroy, engine)
        plain = dl.Llama(dl.LlamaConfig(**MODEL), seed=run.train.seed)
        for length in (3, 5):
            prompts = [list(range(1, length))]
            found = generate(engine, prompts, max_new_tokens=3)
            assert found == generate(plain.eval(), prompts, max_new_tokens=3)
        assert not seen["frames"]
        for step in range(2):
            take_step(engine, split(global_batch(step, 2 * size), 2, world.rank(), size))
        assert seen["frames"] == {"total": 2, "ok": 2}, seen
        assert not seen["graph_break"], seen["graph_break"]
        lines = [
            line.partition(";")[0] for line in said.getvalue().splitlines() if "compil" in line
        ]
        ways = [line for line in lines if not line.startswith("compiled in ")]
        wanted = ["compiling the blocks' forward"] * 2 + ["compiling the blocks' backward"]
        assert ways == (wanted if world.rank() == 0 else [])
        assert len(lines) == 2 * len(ways)
        export_model(engine, engine.ds_llama.resolved.model, folder / "export")
        torch.distributed.barrier()
        names = {name for name, _ in plain.named_parameters()}
        assert set(engine.module.state_dict()) == set(plain.state_dict())
        assert names <= set(ModelFolder(folder / "export").names)


def planned_whole(folder: Path) -> None:
    """What is gathered and reduced, and in how many calls, is as planned, and what is kept for the
    backward pass: a block's product of gate and up besides what it keeps as it is. ("aot_eager"
    keeps some thousandths more than inductor does.)"""
    run = memory.memory_run(Cell("bf16", 3), folder, world.world_size())
    runs = [
        run.model_copy(update={"train": run.train.model_copy(update={"compile": compiled})})
        for compiled in (False, True)
    ]
    with counted():
        found = memory.measure(runs[True])
    plain, whole = (traffic.traffic(resolve_here(each)) for each in runs)
    assert found["moved"]["collectives"] == whole.collectives != plain.collectives
    assert sum(found["moved"]["calls"].values()) == whole.calls
    held = {phase["name"]: phase["total"]["now_bytes"] for phase in found["phases"]}
    plans = [planner.memory(resolve_here(each)).phases for each in runs]
    for name in ("forward", "backward", "step"):
        assert held[name] == pytest.approx(plans[True][name].total.now.total, rel=0.005), name
    products = 2 * 2 * memory.TOKENS * memory.MODEL["intermediate_size"]
    kept = held["forward"] - plans[False]["forward"].total.now.total
    assert products - products // 4 < kept < products + products // 4


def mistaken(folder: Path) -> None:
    """A model without blocks, and machines without a compiler."""
    run = run_of(folder, 2)
    with counted(), pytest.raises(ModelError, match="Llama name no block_class") as caught:
        register(construct(run), run, traits=Traits(no_decay=("*norm.weight",), decay=("*",)))
    assert "remove train.compile" in caught.value.remedy
    with (
        inductor.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(MachineError, match=r"torch\.compile finds no C\+\+ compiler") as none,
    ):
        compiling.require_compiler("cpu")
    assert "install a C++ compiler with OpenMP" in none.value.remedy
    with (
        mock.patch("torch.utils._triton.has_triton", return_value=False),
        pytest.raises(MachineError, match="has no Triton to compile with") as none,
    ):
        compiling.require_compiler("cuda")
    assert "install the triton that belongs to this torch" in none.value.remedy
    failed = CppCompileError(["g++", "x.cpp"], "x.cpp:1: fatal error: omp.h: No such file")
    told = compiling.explained(InductorError(failed, None))
    assert isinstance(told, MachineError)
    assert "cannot use its C++ compiler: x.cpp:1: fatal error: omp.h: No such file" in str(told)
    assert compiling.explained(RuntimeError("shapes")) is None


CELLS = {
    **{
        f"stage{stage}-{precision}": (
            (2,),
            partial(trains_as_the_loop, stage=stage, precision=precision),
        )
        for stage in (2, 3)
        for precision in ("fp32", "bf16")
    },
    "stage3-bf16-optimizer-accumulation": (
        (2,),
        partial(trains_as_the_loop, stage=3, precision="bf16", offload="optimizer", accumulation=2),
    ),
    "planned": ((2,), planned_whole),
    "no-leaves": ((1,), breaks_where_blocks_are_no_leaves),
    "recomputed": ((2,), recomputed_written_and_exported),
    "mistaken": ((1,), mistaken),
}
