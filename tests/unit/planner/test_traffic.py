"""Bytes that a step moves: as the simulated engine counts them, and as the ZeRO paper does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_llama.config.load import load_run
from ds_llama.config.model import LlamaConfig
from ds_llama.config.resolve import resolve
from ds_llama.config.run import RecomputeConfig, Run
from ds_llama.planner import gathers
from ds_llama.planner.coordinator import Limits
from ds_llama.planner.traffic import traffic
from ds_llama.simulator import simulate

MODEL = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
PARAMETERS = LlamaConfig(**MODEL).num_parameters
WORLD = 4
NOTHING_KEPT = {
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
    "stage3_param_persistence_threshold": 0,
}
ON_CPU = {"device": "cpu"}
HALF = {"data_types": {"grad_accum_dtype": "bf16"}}


def run_of(
    zero: dict[str, Any], accumulation: int = 1, recompute: bool = False, **more: Any
) -> Run:
    train: dict[str, Any] = {
        "steps": 1,
        "micro_batch_size": 1,
        "global_batch_size": accumulation * WORLD,
    }
    if recompute:
        train["recompute"] = {"part": "block"}
    return load_run(
        {
            "model": MODEL,
            "data": {"train": "unused", "sequence_length": 128},
            "optimizer": {"lr": 1e-3},
            "train": train,
            "deepspeed": {"bf16": {"enabled": True}, "zero_optimization": zero, **more},
        }
    )


# What `ds-llama simulate` counted in the second step: collectives, to device, to host.
P = 2 * PARAMETERS  # 1,739,008 bytes
TOKENS = 2 * 8 * 128
COUNTED: list[tuple[Run, dict[str, int], int, int]] = [
    (run_of({"stage": 1}), {"all_reduce": P, "all_gather": P}, TOKENS, 0),
    (run_of({"stage": 2}, 2), {"all_reduce": 4 * P, "all_gather": P}, 2 * TOKENS, 0),
    (run_of({"stage": 2}, 2, **HALF), {"all_reduce": 2 * P, "all_gather": P}, 2 * TOKENS, 0),
    (
        run_of({"stage": 2, "use_multi_rank_bucket_allreduce": False}),
        {"reduce": P, "all_gather": P},
        TOKENS,
        0,
    ),
    (
        run_of({"stage": 1, "offload_optimizer": ON_CPU}),
        {"all_reduce": P, "all_gather": P},
        436_800,
        869_504,
    ),
    (
        run_of({"stage": 2, "offload_optimizer": ON_CPU}, 2),
        {"all_reduce": 4 * P, "all_gather": P},
        438_848,
        869_504,
    ),
    (
        run_of({"stage": 2, "offload_optimizer": ON_CPU}, 2, **HALF),
        {"all_reduce": 2 * P, "all_gather": P},
        939_328,
        1_870_464,
    ),
    (run_of({"stage": 3}), {"all_gather": 1_870_080, "reduce_scatter": P}, TOKENS, 0),
    (run_of({"stage": 3}, 2), {"all_gather": 3_737_856, "reduce_scatter": 4 * P}, 2 * TOKENS, 0),
    (
        run_of({"stage": 3, **NOTHING_KEPT}),
        {"all_gather": 2 * P, "reduce_scatter": P},
        TOKENS,
        0,
    ),
    (
        run_of({"stage": 3, "offload_optimizer": ON_CPU}, 2),
        {"all_gather": 3_737_856, "reduce_scatter": 4 * P},
        2_177_856,
        2_608_520,
    ),
    (
        run_of({"stage": 3, "offload_optimizer": ON_CPU, "offload_param": ON_CPU}),
        {"all_gather": 1_870_080, "reduce_scatter": P},
        904_320,
        1_304_264,
    ),
]


@pytest.mark.parametrize("counted", COUNTED)
def test_as_the_engine_was_counted(counted: tuple[Run, dict[str, int], int, int]) -> None:
    run, collectives, to_device, to_host = counted
    planned = traffic(resolve(run, WORLD))
    assert planned.collectives == collectives
    assert planned.to_device_bytes == to_device
    assert planned.to_host_bytes == pytest.approx(to_host, rel=1e-5)  # 8 bytes of a norm


def test_as_the_engine_counts_now() -> None:
    """A combination that the table above does not have."""
    offload = {"offload_optimizer": ON_CPU, "offload_param": ON_CPU}
    run = run_of({"stage": 3, **offload, **NOTHING_KEPT}, 2, recompute=True)
    found, planned = simulate(run, WORLD), traffic(resolve(run, WORLD))
    assert planned.collectives == found.traffic
    assert planned.to_device_bytes == pytest.approx(found.moved["to_device_bytes"], rel=0.001)
    assert planned.to_host_bytes == pytest.approx(found.moved["to_host_bytes"], rel=0.001)


@pytest.mark.parametrize(("stage", "kinds"), [(1, {"all_reduce"}), (3, {"reduce_scatter"})])
def test_one_rank_gathers_nothing(stage: int, kinds: set[str]) -> None:
    run = load_run(run_of({"stage": stage}).model_dump(mode="json", exclude={"resolved"}))
    alone = run.model_copy(update={"train": run.train.model_copy(update={"global_batch_size": 1})})
    assert set(traffic(resolve(alone, 1)).collectives) == kinds


def test_nvme_as_a_real_run_was_counted() -> None:
    """One rank of this model read and wrote 10,420,224 bytes a step: no weight's gradient and no
    vector is large enough to be swapped, nor is any weight."""
    nvme = {"device": "nvme", "nvme_path": "."}
    for zero in ({"offload_optimizer": nvme}, {"offload_optimizer": nvme, "offload_param": nvme}):
        planned = traffic(resolve(run_of({"stage": 3, **zero}, 2), 1))
        assert planned.nvme_read_bytes == planned.nvme_write_bytes == 10_420_224


def test_the_papers_count() -> None:
    """2 volumes at stages 1 and 2, A + 1 with accumulation, 3 A at stage 3."""

    def volumes(stage: int, accumulation: int) -> float:
        planned = traffic(resolve(run_of({"stage": stage}, accumulation, **HALF), WORLD))
        return sum(planned.theory.values()) / P

    assert [volumes(stage, 1) for stage in (1, 2, 3)] == [2, 2, 3]
    assert [volumes(stage, 3) for stage in (1, 2, 3)] == [2, 4, 9]


SIZES = gathers.weights(LlamaConfig(**MODEL))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2 * PARAMETERS),
    st.integers(0, 2 * PARAMETERS),
    st.integers(0, 2 * PARAMETERS),
    st.sampled_from([None, "block", "attention", "mlp"]),
)
def test_every_weight_is_gathered_once_to_three_times(
    prefetch: int, live: int, reuse: int, part: Any
) -> None:
    recompute = None if part is None else RecomputeConfig(part=part)
    order = gathers.trace(LlamaConfig(**MODEL), recompute)
    found = gathers.replay(order, SIZES, Limits(prefetch, live, reuse, 0, 0))
    most = 2 if part is None else 3
    assert PARAMETERS <= found.elements <= most * PARAMETERS
    assert found.most_live <= PARAMETERS
    kept = gathers.replay(order, SIZES, Limits(prefetch, live, 10 * PARAMETERS, 0, 0))
    assert kept.elements == PARAMETERS


def test_more_reuse_never_gathers_more_without_prefetch() -> None:
    order = gathers.trace(LlamaConfig(**MODEL), None)
    gathered = [
        gathers.replay(order, SIZES, Limits(0, PARAMETERS, reuse, 0, 0)).elements
        for reuse in range(0, 2 * PARAMETERS, PARAMETERS // 8)
    ]
    assert gathered == sorted(gathered, reverse=True)
    assert gathered[0] == 2 * PARAMETERS
