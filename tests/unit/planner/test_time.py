"""Every part of a step's time against a number worked out by hand; what more bandwidth may do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_llama.config.load import load_run
from ds_llama.config.resolve import Resolved, resolve
from ds_llama.planner import hardware, work
from ds_llama.planner.advise import plan
from ds_llama.planner.hardware import Hardware
from ds_llama.planner.time import Assumptions, StepTime, step_time
from ds_llama.planner.traffic import Traffic, traffic

PLAIN = Assumptions(
    matmul=1.0,
    attention=1.0,
    attention_half_tokens=0.0,
    unhidden=0.0,
    memory=1.0,
    host_link=1.0,
    host=1.0,
    link=1.0,
    network=1.0,
    collective_latency_s=0.0,
)
# Round figures, so that a second of each is seen at once.
ROUND = Hardware(
    key="round",
    pattern="",
    tflops={"bfloat16": 1.0, "float32": 1.0},
    sources={"tflops": "made up"},
    matmul_fraction=1.0,
    attention_fraction=1.0,
    memory_bytes_per_s=1e9,
    link_bytes_per_s=1e8,
    internode_bytes_per_s=1e7,
    host_link_bytes_per_s=1e6,
    host_memory_bytes_per_s=1e9,
    nvme_read_bytes_per_s=1e6,
    nvme_write_bytes_per_s=5e5,
)
NOTHING = Traffic({}, 0, {})


def resolved_of(stage: int = 3, world: int = 8, preset: str = "tiny", **more: Any) -> Resolved:
    zero = {"stage": stage, **more.pop("zero", {})}
    run = {
        "model": {"preset": preset},
        "data": {"train": "unused", "sequence_length": 64},
        "optimizer": {"lr": 1e-3},
        "train": {"steps": 1, "micro_batch_size": 2, **more},
        "deepspeed": {"bf16": {"enabled": True}, "zero_optimization": zero},
    }
    return resolve(load_run(run), world)


def timed(resolved: Resolved, device: Hardware = ROUND, moved: Traffic = NOTHING) -> StepTime:
    time = step_time(resolved, device, moved, gpus_per_node=4, assumptions=PLAIN)
    assert time is not None
    return time


def test_the_parts_are_the_whole() -> None:
    time = timed(resolved_of(), moved=traffic(resolved_of()))
    parts = time.compute_s + time.collectives_s + time.host_link_s + time.optimizer_s + time.nvme_s
    assert time.total_s == pytest.approx(parts)
    assert time.tokens_per_s == pytest.approx(8 * 2 * 64 / time.total_s)
    assert time.tokens_per_s_per_device == pytest.approx(time.tokens_per_s / 8)


def test_matmuls_attention_and_mfu_of_tiny_by_hand() -> None:
    """tiny: D 64, K 32, F 176, V 256, 2 layers, 128 tokens in sequences of 64."""
    resolved = resolved_of()
    weights = 2 * (2 * 64 * (64 + 32) + 3 * 64 * 176) + 256 * 64
    time = timed(resolved)
    assert time.matmul_s == pytest.approx(6 * 128 * weights / 1e12)
    square = 2 * 2 * 64 * 64 * 64  # 2 sequences x 2 FLOPs x T x T x width, half the square
    assert time.attention_s == pytest.approx(2 * 3.5 * square / 1e12)
    model = 128 * (6 * weights + 6 * 2 * 64 * 64)
    assert time.mfu == pytest.approx(model / 1e12 / time.total_s)
    assert time.hfu == time.mfu


def test_recomputed_blocks_cost_a_forward_and_count_in_hfu_alone() -> None:
    once, again = timed(resolved_of()), timed(resolved_of(recompute={"part": "block"}))
    head = 256 * 64
    blocks = 2 * (2 * 64 * (64 + 32) + 3 * 64 * 176)
    assert again.matmul_s / once.matmul_s == pytest.approx(
        (6 * (blocks + head) + 2 * blocks) / (6 * (blocks + head))
    )
    assert once.recompute_s == 0 < again.recompute_s
    assert again.hfu is not None
    assert again.mfu is not None
    assert once.hfu == once.mfu
    repeated = 2 * 128 * blocks + 2 * (2 * 2 * 64 * 64 * 64)
    assert (again.hfu - again.mfu) * again.total_s * 1e12 == pytest.approx(repeated)


def test_compiled_blocks_move_less() -> None:
    plain, compiled = timed(resolved_of()), timed(resolved_of(compile=True))
    assert compiled.elementwise_s < plain.elementwise_s
    assert compiled.matmul_s == plain.matmul_s


def test_llama_7b_on_8_h100_by_hand() -> None:
    """6 FLOPs a weight of 32 blocks and the head, 6 x 32 x 4096 x T of causal attention: 42.86
    GFLOP a token at T = 4096; GPU-hours and cost of a billion tokens follow from tokens/s alone."""
    run = {
        "model": {"preset": "llama-2-7b"},
        "data": {"train": "unused", "sequence_length": 4096},
        "optimizer": {"lr": 1e-3},
        "train": {"steps": 1, "micro_batch_size": 1, "global_batch_size": 8},
        "deepspeed": {"bf16": {"enabled": True}, "zero_optimization": {"stage": 3}},
    }
    found = plan(run, world_size=8, hardware="h100", price=2.0)
    row = next(each for each in found.strategies if each.name == "zero3")
    assert row.time is not None
    per_token = 6 * (32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32000 * 4096) + 6 * 32 * 4096 * 4096
    assert per_token == pytest.approx(42.86e9, rel=1e-3)
    assert row.time.tokens_per_s == pytest.approx(8 * 4096 / row.time.total_s)
    assert row.mfu == pytest.approx(row.time.tokens_per_s / 8 * per_token / 989.5e12)
    assert row.cost is not None
    hours = 8 * 1e9 / row.time.tokens_per_s / 3600
    assert row.cost.gpu_hours_per_billion_tokens == pytest.approx(hours)
    assert row.cost.cost_per_billion_tokens == pytest.approx(2.0 * hours)


def test_a_ring_within_a_node_and_across() -> None:
    moved = Traffic({"all_gather": 10**8, "all_reduce": 10**8}, 0, {})
    within = timed(resolved_of(world=4), moved=moved)
    assert within.collectives_busy_s == pytest.approx(3 * 3 / 4)  # three payloads at 1e8 bytes/s
    across = timed(resolved_of(world=8), moved=moved)
    assert across.collectives_busy_s == pytest.approx(3 * 7 / 8 / 0.4)  # four adapters of 1e7
    assert timed(resolved_of(world=1), moved=moved).collectives_busy_s == 0


def test_what_is_not_overlapped_is_waited_for() -> None:
    moved = Traffic({"all_gather": 1000}, 0, {})
    assert timed(resolved_of(3), moved=moved).collectives_s == 0
    alone = timed(resolved_of(3, zero={"overlap_comm": False}), moved=moved)
    assert alone.collectives_s == alone.collectives_busy_s > 0
    shared = replace(ROUND, shared=True)
    assert timed(resolved_of(3), shared, moved).collectives_s > 0


def test_new_weights_are_waited_for_at_stage_2_in_any_case() -> None:
    moved = Traffic({"all_reduce": 1000, "all_gather": 1000}, 0, {})
    hidden = timed(resolved_of(2, zero={"overlap_comm": True}), moved=moved)
    assert hidden.collectives_s == pytest.approx(hidden.collectives_busy_s / 3)


def test_host_link_and_nvme_by_hand() -> None:
    moved = Traffic({}, 0, {}, 10**6, 2 * 10**6, 10**6, 10**6)
    offload = {"offload_optimizer": {"device": "cpu"}}
    time = timed(resolved_of(world=4, zero=offload), moved=moved)
    assert time.host_link_s == pytest.approx(3)
    assert timed(resolved_of(world=4), moved=moved).host_link_s == 0
    assert time.nvme_s == pytest.approx(4 * (1 + 2))  # four ranks share the disks
    assert time.limit == "nvme"


def test_adam_on_the_host_is_shared_by_the_ranks_of_a_node() -> None:
    offload = {"offload_optimizer": {"device": "cpu"}}
    time = timed(resolved_of(2, zero=offload))
    elements = resolved_of().model.num_parameters / 8
    assert time.optimizer_s == pytest.approx(4 * elements * (32 + 2) / 1e9)


def test_ranks_on_one_processor_share_it() -> None:
    shared = replace(ROUND, shared=True)
    one, four = timed(resolved_of(world=1), shared), timed(resolved_of(world=4), shared)
    assert four.matmul_s == pytest.approx(4 * one.matmul_s)
    assert four.mfu is not None
    assert four.mfu <= 1


def test_product_by_hand() -> None:
    forward, backward = work.product(2, 3, 5, 2)
    assert (forward.matmul_flops, forward.memory_bytes) == (60, 2 * (6 + 15 + 10))
    assert (backward.matmul_flops, backward.memory_bytes) == (120, 124)


@pytest.mark.parametrize("preset", ["tiny", "llama-3.1-8b", "llama-3.1-405b"])
def test_flops_are_those_of_the_model(preset: str) -> None:
    """Attention's backward pass counts 2.5 times its forward here, 2 times in the model's FLOPs."""
    model = resolved_of(preset=preset).model
    forward, backward, again = work.micro_batch(model, 2, 64, None, element_bytes=2)
    attention = forward.attention_flops / 2
    assert forward.flops + backward.flops - attention == pytest.approx(
        128 * model.flops_per_token(64)
    )
    assert again.flops == 0


@pytest.mark.parametrize(
    "missing", ["matmul_fraction", "memory_bytes_per_s", "link_bytes_per_s", "tflops"]
)
def test_a_figure_that_is_not_known_gives_none(missing: str) -> None:
    device = replace(ROUND, **{missing: {} if missing == "tflops" else None})
    moved = Traffic({"all_gather": 1}, 1, {})
    assert step_time(resolved_of(), device, moved) is None
    assert step_time(resolved_of(), None, moved) is None


def test_a_device_without_figures_gives_none() -> None:
    resolved = resolved_of()
    assert step_time(resolved, hardware.find("t4"), traffic(resolved)) is None
    assert step_time(resolved, hardware.find("h100"), traffic(resolved)) is not None


RATES = (
    *("memory_bytes_per_s", "link_bytes_per_s", "internode_bytes_per_s", "host_link_bytes_per_s"),
    *("host_memory_bytes_per_s", "nvme_read_bytes_per_s", "nvme_write_bytes_per_s"),
)
OFFLOADED = resolved_of(3, zero={"offload_optimizer": {"device": "cpu"}})
MOVED = Traffic({"all_gather": 10**7, "reduce_scatter": 10**7}, 10, {}, 100, 100, 100, 100)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from((*RATES, "matmul_fraction")), st.floats(1.0, 1e6), st.booleans())
def test_nothing_gets_slower_with_more(name: str, times: float, default: bool) -> None:
    assumed = None if default else PLAIN
    faster = replace(ROUND, **{name: getattr(ROUND, name) * times})
    before, after = (
        step_time(OFFLOADED, each, MOVED, gpus_per_node=4, assumptions=assumed)
        for each in (ROUND, faster)
    )
    assert before is not None
    assert after is not None
    assert after.total_s <= before.total_s * (1 + 1e-9)
    assert after.tokens_per_s >= before.tokens_per_s * (1 - 1e-9)
