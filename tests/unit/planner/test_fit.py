"""Fits, tight, no: the arithmetic, on both sides of every bound."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.planner import fit
from ds_llama.planner.fit import Machine
from ds_llama.planner.memory import Memory
from ds_llama.planner.terms import Terms

ORDER = {"no": 0, "tight": 1, "fits": 2}
NODE = Machine(16, 8, gpu_bytes=80 * 2**30, host_bytes=2**40)


def held(device: Terms, host: int = 0, nvme: int = 0) -> Memory:
    return Memory(device, Terms(), "backward", {}, host, 0, nvme, device.total + host)


def verdict(memory: Memory, machine: Machine) -> tuple[str | None, str | None]:
    found = fit.fit(memory, machine)
    return found.verdict, found.limit


def test_the_reserve_is_stated() -> None:
    assert fit.device_reserve(0, 1) == fit.CUDA_CONTEXT_BYTES == 2**30
    assert fit.device_reserve(0, 2) == 2**30 + fit.NCCL_BYTES == 2**30 + 1_600_000_000
    assert fit.device_reserve(100 * 2**30, 1) == 6 * 2**30
    assert fit.host_reserve(NODE) == 8 * 2_100_000_000


@pytest.mark.parametrize("world_size", [1, 8])
def test_each_bound_to_the_byte(world_size: int) -> None:
    memory = held(Terms(parameters=10**10, activations=3 * 10**10))
    need = 4 * 10**10 + fit.device_reserve(4 * 10**10, world_size)
    for capacity, expected in (
        (need, ("fits", None)),
        (need - 1, ("tight", "activations")),
        (4 * 10**10, ("tight", "activations")),
        (4 * 10**10 - 1, ("no", "activations")),
    ):
        assert verdict(memory, Machine(world_size, 8, capacity)) == expected


def test_the_host_counts_the_ranks_of_a_node() -> None:
    memory = held(Terms(parameters=2**30), host=10**11)
    processes = fit.host_reserve(NODE)
    assert verdict(memory, replace(NODE, host_bytes=8 * 10**11 + processes)) == ("fits", None)
    assert verdict(memory, replace(NODE, host_bytes=8 * 10**11)) == ("tight", "host")
    assert verdict(memory, replace(NODE, host_bytes=8 * 10**11 - 1)) == ("no", "host")
    assert verdict(memory, replace(NODE, host_bytes=4 * 10**11, gpus_per_node=4)) == (
        "tight",
        "host",
    )
    few = Machine(2, 8, 2**40, 2 * 10**11 + 2 * fit.HOST_PROCESS_BYTES)
    assert verdict(memory, few) == ("fits", None)


def test_nvme_has_no_reserve() -> None:
    memory = held(Terms(parameters=2**30), nvme=10**11)
    assert verdict(memory, replace(NODE, nvme_bytes=8 * 10**11)) == ("fits", None)
    assert verdict(memory, replace(NODE, nvme_bytes=8 * 10**11 - 1)) == ("no", "nvme")


def test_what_is_not_known_is_not_checked() -> None:
    memory = held(Terms(parameters=2**60), host=2**60, nvme=2**60)
    assert verdict(memory, Machine(8, 8)) == (None, None)
    assert verdict(memory, Machine(8, 8, gpu_bytes=2**62)) == ("fits", None)


def test_a_machine_too_small_for_the_reserve_says_so() -> None:
    assert verdict(held(Terms(logits=10)), Machine(8, 8, 2**20)) == ("tight", "reserve")


def test_the_worst_is_named() -> None:
    memory = held(Terms(optimizer=90 * 2**30), host=2**40)
    assert verdict(memory, NODE) == ("no", "host")  # 8 times too much there
    assert verdict(memory, replace(NODE, host_bytes=2**44)) == ("no", "optimizer")


sizes = st.integers(0, 2**45)


@given(sizes, sizes, sizes, st.integers(1, 2**46), st.integers(0, 2**46), st.integers(1, 2000))
def test_more_memory_never_makes_it_worse(
    device: int, host: int, nvme: int, capacity: int, more: int, world_size: int
) -> None:
    memory = held(Terms(activations=device), host, nvme)
    small = Machine(world_size, 8, capacity, capacity, capacity)
    for name in ("gpu_bytes", "host_bytes", "nvme_bytes"):
        large = replace(small, **{name: capacity + more})
        before, after = fit.fit(memory, small), fit.fit(memory, large)
        assert ORDER[after.verdict or ""] >= ORDER[before.verdict or ""]
        assert fit.headroom(memory, large) >= fit.headroom(memory, small) if device else True


@given(sizes, st.integers(1, 2**46), st.integers(1, 2000))
def test_headroom_and_verdict_say_the_same(device: int, capacity: int, world_size: int) -> None:
    memory = held(Terms(activations=device + 1))
    machine = Machine(world_size, 8, capacity)
    fits = fit.fit(memory, machine).verdict == "fits"
    assert fits == (fit.headroom(memory, machine) >= 0)
