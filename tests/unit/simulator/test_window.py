"""Three micro-batches stand for a window of many: beside every one of them run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ds_llama.config import load_run
from ds_llama.config.resolve import resolve
from ds_llama.simulator import Request, Simulation, simulate_many
from ds_llama.simulator.window import steady_steps

N, MICRO_BATCHES = 4, 4
NAMES = ("zero2_offload", "zero3")
LOSS_BYTES = 4  # of every micro-batch, kept until the step ends (zero/step.py)


def run_of(name: str, micro_batches: int = MICRO_BATCHES) -> Any:
    return load_run(
        {
            "model": {"preset": "debug", "num_hidden_layers": 1},
            "data": {"train": "nowhere", "sequence_length": 64},
            "train": {"steps": 2, "micro_batch_size": 1, "global_batch_size": N * micro_batches},
            "deepspeed": name,
        }
    )


@pytest.fixture(scope="module")
def found() -> dict[str, Simulation]:
    """With three micro-batches for the window, with all, and a window of three."""
    requests = {
        f"{name} {every}": Request(run_of(name), N, every_micro_batch=every == "whole")
        for name in NAMES
        for every in ("short", "whole")
    }
    requests["three"] = Request(run_of("zero3", 3), N)
    return dict(zip(requests, simulate_many(list(requests.values()), jobs=2), strict=True))


def sizes(simulation: Simulation) -> Iterator[tuple[str, int]]:
    for number, phase in enumerate((*simulation.phases, *simulation.first_step)):
        for place in (phase.device, phase.host, phase.total):
            yield f"{number} {phase.name}", place.now_bytes
            yield f"{number} {phase.name}", place.peak_bytes


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_that_of_the_whole_window_but_for_the_losses(
    found: dict[str, Simulation], name: str
) -> None:
    short, whole = found[f"{name} short"], found[f"{name} whole"]
    for (phase, one), (_, other) in zip(sizes(short), sizes(whole), strict=True):
        assert other - one in (0, (MICRO_BATCHES - 3) * LOSS_BYTES), phase


@pytest.mark.parametrize("name", NAMES)
def test_what_moves_and_is_computed_is_that_of_the_whole_window(
    found: dict[str, Simulation], name: str
) -> None:
    short, whole = found[f"{name} short"], found[f"{name} whole"]
    keys = set(short.moved) - {"control_bytes"}  # the losses are gathered at the end
    assert {k: short.moved[k] for k in keys} == {k: whole.moved[k] for k in keys}
    assert short.theory == whole.theory
    assert (short.flops, short.hardware_flops) == (whole.flops, whole.hardware_flops)


def test_three_alone_would_not_do(found: dict[str, Simulation]) -> None:
    """The twin: what a window of three moves and computes is not what one of four does."""
    three, whole = found["three"], found["zero3 whole"]
    assert three.flops is not None
    assert whole.flops is not None
    assert three.flops * MICRO_BATCHES == whole.flops * 3
    assert three.moved["collectives"] != whole.moved["collectives"]


@pytest.mark.parametrize(("name", "micro_batches", "steps"), [("zero3", 1, 3), ("zero3", 2, 2)])
def test_the_last_step_lies_behind_what_stage_3_learns(
    name: str, micro_batches: int, steps: int
) -> None:
    assert steady_steps(resolve(run_of(name, micro_batches), N)) == steps
    assert steady_steps(resolve(run_of("zero2", micro_batches), N)) == 2
