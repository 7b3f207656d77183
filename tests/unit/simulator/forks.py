"""What has to run where torch and DeepSpeed may be changed: each case in a fork that ends with it.

    python -m tests.unit.simulator.forks      prints one JSON object: {case: what came out}

One process imports torch and DeepSpeed once; `test_parts.py` starts it once and reads.
"""

from __future__ import annotations

import importlib
import json
import os
import traceback
from collections.abc import Callable
from typing import Any

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
from deepspeed.ops.op_builder import AsyncIOBuilder
from torch._subclasses.fake_tensor import FakeTensorMode

from ds_llama.config import load_run
from ds_llama.measure.accounting import Account
from ds_llama.simulator import accelerator, attention, patches, session, sharding
from ds_llama.simulator.__main__ import AHEAD
from ds_llama.simulator.result import Request

RUN = {
    "model": {"preset": "debug", "num_hidden_layers": 1},
    "data": {"train": "nowhere", "sequence_length": 64},
    "train": {"steps": 2, "micro_batch_size": 1},
    "deepspeed": "zero3",
}
Case = Callable[[], Any]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


# --- ZeRO-3 without a view for every rank ----------------------------------------------------


def _phases(*overrides: str, with_views: bool = False) -> list[Any]:
    if with_views:
        patches._gather_without_views = lambda: None
    # 6 ranks: they do not divide the parameters, so that there is padding
    found = session.simulate(Request(load_run(RUN, *overrides), 6, rank=5))
    return [phase.to_dict() for phase in (*found.phases, *found.first_step)]


_SHARED = "deepspeed.zero_optimization.stage3_param_persistence_threshold=0"


@case
def gathered_with_views() -> Any:
    return _phases(_SHARED, with_views=True)


@case
def gathered_without() -> Any:
    return _phases(_SHARED)


@case
def gathered_with_less() -> Any:
    """Sabotage: a gather that forgets the parameter's own memory."""

    def forgetful(handle: Any, handle_dependency: bool = True) -> None:
        shapes = [(param, param.ds_shape) for param in handle.params]
        wait(handle, handle_dependency)
        for param, shape in shapes:
            param.data = torch.empty(1, dtype=param.dtype, device=param.device).expand(shape)

    wait, sharding.wait = sharding.wait, forgetful
    return _phases(_SHARED)


# --- stand-ins beside what they stand for ----------------------------------------------------


def _updates(optimizer_of: Callable[[list[torch.Tensor]], torch.optim.Optimizer]) -> Any:
    """Bytes of two updates of two parameters."""
    account = Account()
    with account:
        parameters = [torch.nn.Parameter(torch.ones(size)) for size in (1000, 77)]
        optimizer = optimizer_of(parameters)
        for _ in range(2):
            with account.phase("step"):
                for parameter in parameters:
                    parameter.grad = torch.ones_like(parameter)
                optimizer.step()
    return [phase.to_dict()["total"] for phase in account.phases]


def _cpu_adam(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    return DeepSpeedCPUAdam(parameters, adamw_mode=True)


def _fused_adamw(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, fused=True)


def _fused_adam(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    return FusedAdam(parameters)


def _forgetful_adam(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, momentum=0.9)


@case
def cpu_adam_real() -> Any:
    return _updates(_cpu_adam)


@case
def fused_adam_real() -> Any:
    return _updates(_fused_adam)


@case
def fused_adamw_real() -> Any:
    return _updates(_fused_adamw)


def _fake(optimizer_of: Any) -> Any:
    patches.apply("cpu")
    with FakeTensorMode():
        return _updates(optimizer_of)


@case
def cpu_adam_stand_in() -> Any:
    return _fake(_cpu_adam)


@case
def fused_adam_stand_in() -> Any:
    return _fake(_fused_adam)


@case
def fused_adamw_fake() -> Any:
    return _fake(_fused_adamw)


@case
def another_optimizer() -> Any:
    return _fake(_forgetful_adam)


def _swapped(path: str) -> Any:
    """Bytes of a page-locked buffer, and what is said after it was written and read."""
    account = Account()
    with account, account.phase("swap"):
        handle = AsyncIOBuilder().load().aio_handle(1 << 20, 8, False, False, 1)
        buffer = handle.new_cpu_locked_tensor(1 << 18, torch.zeros(1)).zero_()
        said = [handle.is_pinned(buffer), handle.is_pinned(torch.zeros(3))]
        said += [handle.async_pwrite(buffer, path, 0), handle.wait()]
        said += [handle.async_pread(buffer, path, 0), handle.wait()]
        handle.free_cpu_locked_tensor(buffer)
    return [said, account.phases[0].to_dict()["total"]]


@case
def async_io_real() -> Any:
    return _swapped("swapped.tensor")


@case
def async_io_stand_in() -> Any:
    patches.apply("cpu")
    with FakeTensorMode():
        return _swapped("nowhere/swapped.tensor")


def _held_after_a_step(optimizer: str) -> Any:
    """Bytes at a step's end on "sim", by category; each of these keeps one moment."""
    words = [
        f'optimizer={{"type": "{optimizer}", "lr": 0.1}}',
        "deepspeed.zero_optimization.stage=1",
    ]
    phases = session.simulate(
        Request(load_run(RUN, *words, "deepspeed.gradient_clipping=0"), 6)
    ).phases
    return phases[-1].to_dict()["device"]["now"]


@case
def lion_on_sim() -> Any:
    return _held_after_a_step("Lion")


@case
def sgd_on_sim() -> Any:
    return _held_after_a_step("SGD")


@case
def adagrad_on_sim() -> Any:
    return _held_after_a_step("Adagrad")


# --- attention -------------------------------------------------------------------------------


def _attended(device: str, heads: int, dtype: torch.dtype, attend: Any) -> Any:
    """Bytes by device of forward and backward; the kept ones are those of the first phase's end."""
    account = Account(device)
    with account:
        q, k, v = (
            torch.zeros(2, count, 128, 32, dtype=dtype, device=device, requires_grad=True)
            for count in (4, heads, heads)
        )
        with account.phase("forward"):
            out = attend(q, k, v, is_causal=True, enable_gqa=heads != 4)
        with account.phase("backward"):
            out.sum().backward()
    return [phase.to_dict()["device"] for phase in account.phases]


def _on_sim(heads: int, dtype: torch.dtype, attend: Any) -> Any:
    with FakeTensorMode():
        return _attended("sim", heads, dtype, attend)


@case
def flash_of_the_cpu() -> Any:
    return _attended("cpu", 4, torch.bfloat16, torch.nn.functional.scaled_dot_product_attention)


@case
def flash_on_sim() -> Any:
    return _on_sim(4, torch.bfloat16, attention.attention)


@case
def efficient_on_sim() -> Any:
    return _on_sim(4, torch.float32, attention.attention)


@case
def efficient_of_the_cpu() -> Any:
    return _attended("cpu", 4, torch.float32, torch.nn.functional.scaled_dot_product_attention)


@case
def grouped_on_sim() -> Any:
    return _on_sim(2, torch.bfloat16, attention.attention)


@case
def math_on_sim() -> Any:
    """Sabotage: what torch does on a device that it does not know."""
    return _on_sim(4, torch.bfloat16, attention._real)


def main() -> None:
    for name in AHEAD:
        importlib.import_module(name)
    accelerator.register_device()
    found = {}
    for name, function in CASES.items():
        read, write = os.pipe()
        if os.fork() == 0:
            try:
                outcome = {"value": function()}
            except BaseException:
                outcome = {"error": traceback.format_exc()}
            with os.fdopen(write, "w") as out:
                json.dump(outcome, out)
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as result:
            found[name] = json.loads(result.read() or "{}")
        os.wait()
    print("FOUND " + json.dumps(found))


if __name__ == "__main__":
    main()
