"""torch's compiler is not imported by a training that compiles nothing, and comes back whole."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ds_llama.zero import compilers

PROGRAM = """
import json, sys
from pathlib import Path
import torch
from ds_llama.selftest.tiny import global_batch, make_run
from ds_llama.trainer.build import construct
from ds_llama.zero.register import register
from ds_llama.zero.step import take_step

run = make_run(Path(sys.argv[1]), stage=3)
engine = register(construct(run), run)
def train():
    return [take_step(engine, [global_batch(0, 2)]).loss for _ in range(2)]

losses, absent = train(), "torch._dynamo" not in sys.modules
put_off = hasattr(torch.optim.Optimizer.zero_grad.__wrapped__, "__dynamo_disable")
import torch._dynamo
restored = not hasattr(torch.optim.Optimizer.zero_grad.__wrapped__, "__dynamo_disable")
losses += train()
torch.optim.SGD([torch.zeros(1)]).zero_grad()
asked = hasattr(torch.optim.Optimizer.zero_grad.__wrapped__, "__dynamo_disable")
print(json.dumps([absent, put_off, restored, asked, losses]))
"""


def test_a_step_of_stage_3_without_the_compiler_and_then_with_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    *facts, losses = json.loads(done.stdout.splitlines()[-1])
    assert facts == [True, True, True, True]
    assert losses == sorted(losses, reverse=True)


def test_muons_functions_are_compiled_once_and_at_their_first_call() -> None:
    compiled: list[Any] = []

    def compile(**settings: Any) -> Any:
        def of(function: Any) -> Any:
            compiled.append(settings)
            return partial(function, 1)

        return of

    def add(left: int, right: int) -> int:
        return left + right

    lazy = compilers._at_first_call(compile, {"mode": "any"}, add)
    assert not compiled
    assert [lazy(2), lazy(3)] == [3, 4]
    assert compiled == [{"mode": "any"}]
    assert lazy.__wrapped__ is add


def test_initialize_leaves_torch_as_it_was() -> None:
    import torch
    from deepspeed.runtime import compiler

    before = torch.compiler.disable, compiler.compile
    with pytest.raises(KeyError), compilers.put_off():
        raise KeyError
    assert (torch.compiler.disable, compiler.compile) == before
