"""Recomputation keeps what it should less, to the byte, and leaves every gradient bit for bit.

One engine a cell: each mode is put on its modules, measured on the same weights and batch, and
taken off again. The bytes are live tensor bytes at the end of the forward pass, less those of the
same pass without recomputation: what autograd did not keep.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import deepspeed
import pytest
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.activation_checkpointing import checkpointing
from transformers import LlamaConfig as HFConfig
from transformers import LlamaForCausalLM

from ds_llama.config.run import RecomputeConfig
from ds_llama.errors import ModelError
from ds_llama.measure.accounting import Account
from ds_llama.model.traits import Traits
from ds_llama.trainer.build import construct
from ds_llama.zero import engine as engines
from ds_llama.zero import recompute, world
from ds_llama.zero.pieces import gradients
from ds_llama.zero.register import register
from ds_llama.zero.step import take_step
from tests.distributed.runs import MODEL, VOCAB, global_batch, make_run, split

BLOCKS, ROWS, TOKENS = 4, 8, 64
N, D, A, K, F, H = ROWS * TOKENS, 64, 64, 32, 160, 4
MODES = [
    RecomputeConfig(),
    RecomputeConfig(part="attention"),
    RecomputeConfig(part="mlp"),
    RecomputeConfig(every=3),
    RecomputeConfig(part="mlp", every=2),
]


def bytes_saved(kind: str, precision: str, what: RecomputeConfig) -> int:
    """Closed form; ours stands in `zero/recompute.py`.

    Hugging Face's MLP keeps silu(gate) and the product too. Its norms keep the normed value before
    the weight, and in bf16 the fp32 copy of their input instead of the input (which recomputation
    of the block then has to keep). Whatever is recomputed keeps the position ids, once.
    """
    e = 4 if precision == "fp32" else 2
    theirs = kind == "hugging face"
    attention, mlp = e * N * (2 * A + 2 * K) + 4 * N * H, e * N * (4 if theirs else 2) * F
    norms = N * D * ((5 * e if precision == "fp32" else 14) if theirs else 3 * e) + 8 * N
    each = {"attention": attention, "mlp": mlp, "block": attention + mlp + norms}[what.part]
    position_ids = 8 * TOKENS if theirs and what.part != "mlp" else 0
    return each * -(-BLOCKS // what.every) - position_ids


@dataclass
class Pass:
    """One forward and backward pass: live bytes after forward, the peak of both, gradients."""

    kept_bytes: int
    peak_bytes: int
    gradients: dict[tuple[str, int], torch.Tensor]

    def same_gradients(self, other: Pass) -> bool:
        mine, others = self.gradients, other.gradients
        return mine.keys() == others.keys() and all(
            torch.equal(mine[key], others[key]) for key in mine
        )


def gathered_bytes(module: torch.nn.Module) -> int:
    """What ZeRO-3 holds gathered, which depends on what it has learnt of the modules' order so far.

    In a world of one a gathered parameter is its own partition and takes nothing more.
    """
    whole = [parameter.data.untyped_storage() for parameter in module.parameters()]
    own = [getattr(p, "ds_tensor", p).data.untyped_storage() for p in module.parameters()]
    parted = {storage._cdata for storage in own}
    return sum({s._cdata: s.nbytes() for s in whole if s._cdata not in parted}.values())


def measured(engine: Any) -> Pass:
    """A pass over one batch and an update at learning rate 0, which changes nothing."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(0, VOCAB, (ROWS, TOKENS), generator=generator)
    torch.manual_seed(11)  # of dropout
    account = Account()
    account.track(engine.module.parameters())
    with account:
        with account.phase("forward"):
            loss = engine(input_ids=ids, labels=ids, **engine.ds_llama.traits.sum_loss).loss
        weight_bytes = gathered_bytes(engine.module)
        with account.phase("backward"):
            engine.backward(loss / N)
    held = {(p.name, p.start): p.flat.clone() for p in gradients(engine)}
    engines.step(engine)
    forward, backward = account.phases
    return Pass(forward.total.now_bytes - weight_bytes, backward.total.peak_bytes, held)


@contextmanager
def recomputing(engine: Any, what: RecomputeConfig, section: dict[str, Any]) -> Iterator[None]:
    recompute.apply(engine.module, engine.ds_llama.traits, section, what)
    try:
        yield
    finally:
        for module in engine.module.modules():
            module.__dict__.pop("forward", None)


def engine_of(folder: Path, kind: str, stage: int, precision: str, dropout: float = 0.0) -> Any:
    shape = {"num_hidden_layers": BLOCKS, "attention_dropout": dropout}
    run = make_run(folder, stage=stage, precision=precision, world=world.world_size(), model=shape)
    model = construct(run, how="plain" if kind == "hugging face" else None)
    if kind == "hugging face":
        weights, dtype = model.state_dict(), next(model.parameters()).dtype
        model = LlamaForCausalLM(HFConfig(**MODEL | shape)).to(dtype)
        model.load_state_dict(weights)
    engine = register(model, run)
    engines.set_lr(engine, 0.0)
    measured(engine)  # ZeRO-3 finds out the order of the modules
    return engine


def saves_what_it_should(folder: Path, *, kind: str, stage: int, precision: str) -> None:
    engine = engine_of(folder, kind, stage, precision)
    plain = measured(engine)
    for what in MODES:
        expected = bytes_saved(kind, precision, what)
        with recomputing(engine, what, {}):
            found = measured(engine)
        saved = plain.kept_bytes - found.kept_bytes
        assert saved == expected, f"{what}: {saved} bytes saved, not {expected}"
        assert found.same_gradients(plain), what
        if what.part == "block" and what.every == 1:
            # While a block is recomputed its activations are there: all but one are gone.
            least = expected * (BLOCKS - 2) // BLOCKS
            assert plain.peak_bytes - found.peak_bytes >= least, (plain.peak_bytes, found)
    _nothing_recomputed_saves_nothing(engine, plain)


def _nothing_recomputed_saves_nothing(engine: Any, plain: Pass) -> None:
    """Twin: the same measurement with a function that does not recompute."""
    kept = mock.patch.object(deepspeed.checkpointing, "checkpoint", lambda f, *args: f(*args))
    with kept, recomputing(engine, RecomputeConfig(), {}):
        found = measured(engine)
    assert plain.kept_bytes == found.kept_bytes


def dropout_is_repeated(folder: Path) -> None:
    """The recomputed forward draws the same dropout; without the generator's state it does not."""
    engine = engine_of(folder, "ours", 2, "fp32", dropout=0.2)
    plain = measured(engine)
    for what in MODES[:4]:
        with recomputing(engine, what, {}):
            assert measured(engine).same_gradients(plain), what
    drawn_anew = mock.patch.object(checkpointing, "_set_cuda_rng_state")
    also = mock.patch.object(torch, "set_rng_state")
    with drawn_anew, also, recomputing(engine, RecomputeConfig(), {}):
        assert not measured(engine).same_gradients(plain)


def the_sections_keys(folder: Path) -> None:
    """Partitioned into contiguous buffers, timed and synchronised: the same gradients."""
    engine = engine_of(folder, "ours", 2, "fp32")
    plain = measured(engine)
    section = {
        "partition_activations": True,
        "contiguous_memory_optimization": True,
        "number_checkpoints": BLOCKS,
    }
    for what in (RecomputeConfig(), RecomputeConfig(part="attention")):
        with recomputing(engine, what, section):
            for _ in range(2):
                assert measured(engine).same_gradients(plain), what
    with recomputing(engine, RecomputeConfig(), {"profile": True}):
        text = io.StringIO()
        with redirect_stdout(text):
            measured(engine)
    for word in ("fwd: ", "backward: "):
        assert text.getvalue().count(f"time (ms) | {word}") == BLOCKS, text.getvalue()
    waits = mock.Mock()
    with mock.patch.object(type(get_accelerator()), "synchronize", waits):
        measured(engine)
        without = waits.call_count
        with recomputing(engine, RecomputeConfig(), {"synchronize_checkpoint_boundary": True}):
            measured(engine)
    assert waits.call_count - 2 * without == 4 * BLOCKS


def through_the_run(folder: Path) -> None:
    """train.recompute alone: the section is in the resolved JSON, and every second MLP runs twice.

    And a model whose traits do not name the part is refused.
    """
    size = world.world_size()
    what = {"part": "mlp", "every": 2}
    train = {"steps": 1, "micro_batch_size": 2, "global_batch_size": 2 * size, "recompute": what}
    run = make_run(folder, stage=3, world=size, train=train, model={"num_hidden_layers": 3})
    engine = register(construct(run), run)
    assert engine.ds_llama.recomputed
    section = engine.ds_llama.resolved.deepspeed["activation_checkpointing"]
    assert section["cpu_checkpointing"] is False
    calls: list[str] = []
    for number, block in enumerate(engine.module.model.layers):
        for name, part in (("mlp", block.mlp.gate_proj), ("attention", block.self_attn.q_proj)):
            part.register_forward_hook(lambda *_, word=f"{name} {number}": calls.append(word))
    take_step(engine, split(global_batch(0, 2 * size), 2, world.rank(), size))
    assert [calls.count(f"mlp {number}") for number in range(3)] == [2, 1, 2]
    assert [calls.count(f"attention {number}") for number in range(3)] == [1, 1, 1]
    rows = {"no_decay": ("*norm.weight",), "decay": ("*",)}
    block = engine.ds_llama.traits.block_class
    for traits, row in ((Traits(block, **rows), "mlp_class"), (Traits(**rows), "block_class")):
        with pytest.raises(ModelError, match=f"the traits of Llama name no {row}") as caught:
            register(construct(run), run, traits=traits)
        assert f"give {row}= in its Traits" in caught.value.remedy


def _cells() -> dict[str, tuple[tuple[int, ...], Callable[[Path], None]]]:
    cells: dict[str, tuple[tuple[int, ...], Callable[[Path], None]]] = {
        "dropout": ((1,), dropout_is_repeated),
        "keys": ((1,), the_sections_keys),
        "through-the-run": ((1,), through_the_run),
    }
    for kind in ("ours", "hugging face"):
        for stage in (1, 2, 3):
            for precision in ("fp32", "bf16"):
                cell = partial(saves_what_it_should, kind=kind, stage=stage, precision=precision)
                name = f"{kind.replace(' ', '-')}-stage{stage}-{precision}"
                # Half of them at a world of two, where gradients are sharded.
                cells[name] = ((1 + (stage + (precision == "bf16")) % 2,), cell)
    return cells


CELLS = _cells()
