"""`train.compile`: every block's forward through torch.compile.

    ZeRO's hooks ──> block.forward, compiled: attention, feed-forward and norms in one graph
    ZeRO's hooks ──> the next block

At stage 3 every module has hooks that gather its weights, and each hook breaks the graph. Blocks
are therefore made leaf modules: the hooks are the block's alone, its weights are gathered together
before it and its gradients reduced together after it. ZeRO has to know before the engine is made.

Forward is replaced on the instance, so that no name of a parameter changes, and recomputation wraps
the compiled forward. All blocks share their code and so what is compiled of it: one graph, and a
second without gradients where blocks are recomputed. In evaluation a block runs as it is: texts
that grow by a token have another shape each time.

Forward is compiled in the first micro-batch and backward in its backward pass, on every rank.
What inductor makes is kept in a folder of the machine, and a kernel's compiler runs under a lock
of its name there (torch/_inductor/codecache.py:3879): once for all ranks. A later run of the same
shapes, as after a resume, traces, and finds the rest.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import set_z3_leaf_modules
from torch import nn

from ds_llama.errors import MachineError, ModelError
from ds_llama.model.traits import Traits
from ds_llama.units import format_duration
from ds_llama.zero import world

BACKEND = "inductor"


def apply(model: nn.Module, traits: Traits, stage: int) -> None:
    """Compile the blocks of `model` at their first forward; before the engine is made.

    Raises ModelError where the traits name no block that the model has, MachineError where this
    machine has nothing to compile with.
    """
    cls = traits.block_class
    blocks = [m for m in model.modules() if cls is not None and isinstance(m, cls)]
    if not blocks:
        raise ModelError(
            f"blocks are to be compiled, and the traits of {type(model).__name__} name no "
            "block_class that the model has",
            where="train.compile",
            remedy="give block_class= in its Traits, or remove train.compile",
        )
    if BACKEND == "inductor":
        require_compiler(get_accelerator().device_name())
    if stage == 3:
        set_z3_leaf_modules(model, list(traits.leaf_classes) or [type(blocks[0])])
    if world.rank() == 0:
        _announce()
    for block in blocks:
        block.forward = _compiled(block)  # type: ignore[method-assign]


def require_compiler(device: str) -> None:
    """MachineError where torch.compile has no compiler for a device: "cpu", or one of Triton's."""
    if device != "cpu":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise MachineError(
                "torch.compile has no Triton to compile with",
                where="train.compile",
                remedy="install the triton that belongs to this torch, or remove train.compile",
            )
        return
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        cpp_builder.get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise _no_compiler("finds no C++ compiler") from error


def _announce() -> None:
    """Say on stderr when torch begins to compile, and how long it took: the first step's delay."""
    from torch._dynamo.callback import CallbackTrigger, callback_handler
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    began = time.perf_counter()

    def begins(args: Any) -> None:
        nonlocal began
        began = time.perf_counter()
        back = args.callback_trigger is CallbackTrigger.LAZY_BACKWARD
        way = "backward" if back else "forward"
        print(f"compiling the blocks' {way}; kept in {cache_dir()}", file=sys.stderr, flush=True)

    def ends(args: Any) -> None:
        print(f"compiled in {format_duration(time.perf_counter() - began)}", file=sys.stderr)

    for callbacks in (callback_handler.start_callbacks, callback_handler.end_callbacks):
        # not those of an engine before
        callbacks[:] = [each for each in callbacks if each.__module__ != __name__]
    callback_handler.register_start_callback(begins)
    callback_handler.register_end_callback(ends)


def _no_compiler(what: str) -> MachineError:
    return MachineError(
        f"torch.compile {what}",
        where="train.compile",
        remedy="install a C++ compiler with OpenMP (Debian, Ubuntu: apt install g++; others: set "
        "CXX to it), or remove train.compile",
    )


def _compiled(block: nn.Module) -> Callable[..., Any]:
    plain, compiled = block.forward, torch.compile(block.forward, backend=BACKEND)

    def run(*args: Any, **kwargs: Any) -> Any:
        if not block.training:
            return plain(*args, **kwargs)
        try:
            return compiled(*args, **kwargs)
        except Exception as error:
            told = explained(error)
            if told is None:
                raise
            raise told from error

    return run


def explained(error: Exception) -> MachineError | None:
    """What to say of a C++ compiler that is there and does not work; None of other errors."""
    from torch._inductor.exc import CppCompileError

    inner = getattr(error, "inner_exception", None)
    if not isinstance(inner, CppCompileError):
        return None
    lines = [line for line in str(inner).splitlines() if "error" in line.lower()]
    return _no_compiler(f"cannot use its C++ compiler: {(lines or [type(inner).__name__])[-1]}")
