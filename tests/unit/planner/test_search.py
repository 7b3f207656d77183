"""`max=`: its result fits and the next does not, by plans that know nothing of the search."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import ds_llama as dl
from ds_llama.config.resolve import resolve
from ds_llama.planner import search
from ds_llama.planner.fit import Machine, fit, room
from ds_llama.planner.memory import memory
from ds_llama.planner.plan import Plan
from ds_llama.planner.strategies import candidates
from tests.unit.planner.runs import run

PRESET = "tinyllama-1.1b"


def planned(gpu_memory: int, what: Any, **train: Any) -> Plan:
    return dl.plan(run(PRESET, **train), world_size=8, gpu_memory=gpu_memory, max=what)


def fits(name: str, gpu_memory: int, *overrides: str, **train: Any) -> bool:
    """Whether a strategy fits, from its own JSON as a person would write it."""
    base, plus, _ = name.partition("+")
    section = ["deepspeed.activation_checkpointing={}"] if plus else []
    given = run(PRESET, base, *section, *overrides, **train)
    machine = Machine(8, 8, gpu_memory)
    return fit(memory(resolve(given, 8), room(machine)), machine).verdict == "fits"


@settings(max_examples=3)
@given(st.integers(5 * 2**30, 30 * 2**30))
def test_the_longest_sequence_fits_and_one_more_token_does_not(gpu_memory: int) -> None:
    for row in planned(gpu_memory, "sequence", micro_batch_size=8).strategies[::2]:
        longest = row.max_sequence_length or 1
        for length, expected in ((longest, True), (longest + 1, False)):
            if 2 <= length <= 2048:
                found = fits(
                    row.name, gpu_memory, f"data.sequence_length={length}", micro_batch_size=8
                )
                assert found == expected, (row.name, length)


@settings(max_examples=3)
@given(st.integers(5 * 2**30, 30 * 2**30))
def test_the_largest_micro_batch_fits_and_one_more_sequence_does_not(gpu_memory: int) -> None:
    for row in planned(gpu_memory, "micro_batch").strategies[1::2]:
        most = row.max_micro_batch or 0
        assert most == 0 or fits(row.name, gpu_memory, micro_batch_size=most), row.name
        assert not fits(row.name, gpu_memory, micro_batch_size=most + 1), row.name


@settings(max_examples=3)
@given(st.integers(5 * 2**30, 60 * 2**30))
def test_a_fixed_global_batch_is_divided(gpu_memory: int) -> None:
    """96 sequences on 8 ranks are 12 each: 1, 2, 3, 4, 6 or 12 at once."""
    plan = planned(gpu_memory, "micro_batch", micro_batch_size=2, global_batch_size=96)
    for row in plan.strategies[::2]:
        fitting = [
            micro
            for micro in (1, 2, 3, 4, 6, 12)
            if fits(row.name, gpu_memory, micro_batch_size=micro, global_batch_size=96)
        ]
        assert row.max_micro_batch == max(fitting, default=None), row.name


def test_the_models_positions_are_the_end() -> None:
    plan = dl.plan(run("tiny"), world_size=8, gpu_memory="80GiB", max="sequence")
    positions = dl.preset("tiny").max_position_embeddings
    assert {row.max_sequence_length for row in plan.strategies} == {positions}
    told = run("tiny", "zero2", "model.max_position_embeddings=5000")
    plan = dl.plan(told, world_size=8, gpu_memory="80GiB", max="sequence")
    assert {row.max_sequence_length for row in plan.strategies} == {5000}


@given(st.integers(-3, 3000), st.integers(1, 2000), st.floats(0.5, 3))
def test_largest_is_the_last_that_has_something_left(end: int, most: int, power: float) -> None:
    asked = []

    def left(n: int) -> int | None:
        asked.append(n)
        assert 1 <= n <= most
        return round(10 * (max(end, 0) ** power - n**power)) if end > 0 else -1

    expected = min(end, most)
    found = search.largest(left, most)
    # where the slope is flat rounding makes the neighbours equal
    assert found == (None if expected < 1 else expected) or left(found or 1) == left(expected)
    assert len(asked) < 40


def test_a_share_of_one_sequence_that_does_not_fit() -> None:
    """There is no smaller micro batch to try."""
    large = run("llama-3.1-405b", global_batch_size=8, micro_batch_size=1)
    memory = {"gpu_memory": "80GiB", "host_memory": "512GiB"}
    found = dl.plan(large, world_size=8, max="micro-batch", **memory)
    assert {row.max_micro_batch for row in found.strategies} == {None}


def test_largest_of_nothing() -> None:
    assert search.largest(lambda n: None, 10) is None
    assert search.largest(lambda n: -1, 10) is None
    assert search.largest(lambda n: 1 if n < 2 else None, 10) == 1


def test_a_run_that_does_not_resolve_fits_nowhere() -> None:
    given = run("tiny", "zero2", global_batch_size=12)
    machine = dl.plan(run("tiny"), world_size=8, gpu_memory="1GiB").machine
    assert search.spare(given, machine) is None


def test_on_one_gpu_the_next_world_is_not_a_whole_node() -> None:
    plan = dl.plan(run("llama-7b", "zero3"), world_size=1, gpu_memory="24GiB", host_memory="64GiB")
    assert plan.recommended is None
    larger = [each.world_size for each in plan.changes if each.world_size > 1]
    assert larger
    assert 1 < larger[0] < 8


def test_a_larger_world_says_the_batch_that_it_needs() -> None:
    given = run("llama-3.1-70b", "zero3", global_batch_size=32)
    plan = dl.plan(given, world_size=8, gpu_memory="64GiB", host_memory="256GiB")
    change = next(each for each in plan.changes if each.change.startswith("on "))
    words, _, batch = change.change.partition(" with train.global_batch_size=")
    assert words == f"on {change.world_size} GPUs"
    assert int(batch or 32) == -(-32 // (4 * change.world_size)) * 4 * change.world_size


@settings(max_examples=8)
@given(
    st.sampled_from(["zero0", "zero1", "zero2_fp16", "zero3", "zero3_nvme"]),
    st.sampled_from([1, 2, 8, 100]),
    st.integers(1, 16),
    st.sampled_from([2**n for n in range(16, 27)]),
    st.sampled_from(["AdamW", "SGD", "Lion"]),
)
def test_hopeless_is_said_of_nothing_that_fits(
    name: str, world_size: int, micro: int, capacity: int, optimizer: str
) -> None:
    given = run("tiny", name, f"optimizer.type={optimizer}", micro_batch_size=micro)
    machine = Machine(world_size, 8, capacity, capacity, capacity)
    for each in candidates(given, world_size, nvme=True)[0]:
        if search.hopeless(each.resolved, machine):
            assert fit(memory(each.resolved), machine).verdict == "no", each.name


def test_what_is_far_too_large_is_hopeless() -> None:
    own = candidates(run("llama-3.1-405b", "zero3"), 8)[0]
    assert all(search.hopeless(each.resolved, Machine(8, 8, 2**36, 2**40)) for each in own)
