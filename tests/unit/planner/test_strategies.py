"""Which strategies a run is planned under, and that each is what `train` would do."""

from __future__ import annotations

from typing import Any

import pytest

from ds_llama.config import shipped
from ds_llama.config.resolve import resolve
from ds_llama.errors import ConfigErrors
from ds_llama.planner import strategies
from ds_llama.planner.strategies import candidates
from tests.unit.planner.runs import run

HALF = [*strategies.NAMES[1:]]


def names(deepspeed: Any, *overrides: str, nvme: bool = False, **train: Any) -> list[str]:
    return [
        each.name
        for each in candidates(run("tiny", deepspeed, *overrides, **train), 4, nvme=nvme)[0]
    ]


def both(plain: list[str]) -> list[str]:
    return [label for name in plain for label in (name, f"{name}+recompute")]


def test_every_stage_and_offload_with_and_without_recomputation() -> None:
    assert names("zero2") == both(HALF)


def test_stage_0_in_fp32_only_and_the_rule_that_says_so() -> None:
    assert names("zero0") == both(list(strategies.NAMES))
    _, refused = candidates(run("tiny", "zero2"), 4)
    assert [each.name for each in refused] == ["zero0", "zero0+recompute"]
    assert refused[0].reason.startswith("bf16 at ZeRO stage 0 takes a phantom optimizer step")


def test_nvme_where_it_is_asked_for_or_the_run_has_a_path() -> None:
    assert names("zero2", nvme=True) == both([*HALF, *strategies.NVME_NAMES])
    assert names("zero3_nvme") == both([*HALF, *strategies.NVME_NAMES])
    found, _ = candidates(
        run("tiny", "zero3_nvme", "deepspeed.zero_optimization.offload_param.nvme_path=/fast"), 4
    )
    nvme = next(each for each in found if each.name == "zero3_nvme_optimizer")
    zero = nvme.resolved.deepspeed["zero_optimization"]
    assert zero["offload_optimizer"]["nvme_path"] == "/local_nvme"  # the optimizer's own, first


@pytest.mark.parametrize(
    "override",
    [
        "train.recompute=null",
        'train.recompute={"part": "mlp"}',
        "deepspeed.activation_checkpointing={}",
        "deepspeed.activation_checkpointing=null",
    ],
)
def test_recomputation_is_left_alone_where_the_run_says_it(override: str) -> None:
    found, _ = candidates(run("tiny", "zero2", override), 4)
    assert [each.name for each in found] == HALF
    expected = "null" not in override
    assert {each.recompute for each in found} == {expected}


@pytest.mark.parametrize("name", [n for n in shipped.names() if n != "zero3_zenflow"])
def test_the_run_itself_is_one_row(name: str) -> None:
    """Under its own name where it is a strategy of its own, and as it resolves."""
    given = run("tiny", name)
    found, _ = candidates(given, 8)
    own = [each for each in found if each.own]
    assert len(own) == 1
    assert own[0].resolved == resolve(given, 8)
    plain = {"zero2_fp16": "zero2", "zero2_autocast": "zero2", "zero2_bf16_states": "zero2"}
    assert own[0].name == plain.get(name, name)
    labels = [each.name for each in found]
    assert len(set(labels)) == len(labels)


def test_a_strategy_that_nobody_ships_is_called_own() -> None:
    given = {
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}},
    }
    assert names(given) == both([*HALF, "own"])


def test_the_runs_own_buckets_stay_in_its_row_and_go_to_no_other() -> None:
    key = "reduce_bucket_size"
    found, _ = candidates(run("tiny", "zero2", f"deepspeed.zero_optimization.{key}=4242"), 4)
    sizes = {each.name: each.resolved.deepspeed["zero_optimization"].get(key) for each in found}
    assert sizes.pop("zero2") == sizes.pop("zero2+recompute") == 4242
    assert 4242 not in sizes.values()


def test_the_rest_of_the_json_goes_to_all() -> None:
    overrides = ["deepspeed.gradient_clipping=0.25", "deepspeed.wall_clock_breakdown=true"]
    found, _ = candidates(run("tiny", "zero2_fp16", *overrides), 4)
    for each in found:
        assert each.resolved.deepspeed["gradient_clipping"] == 0.25
        assert each.resolved.deepspeed["wall_clock_breakdown"] is True
        assert each.resolved.dtype == "float16"


def test_deepcompile_is_the_runs_own_row_only() -> None:
    found, _ = candidates(run("tiny", "zero3_deepcompile"), 4)
    compiled = [each.name for each in found if "compile" in each.resolved.deepspeed]
    assert compiled == ["zero3_deepcompile"]  # with recomputation the rules refuse it


@pytest.mark.parametrize("world_size", [1, 4, 1000])
def test_each_candidate_is_what_train_would_resolve(world_size: int) -> None:
    found, _ = candidates(run("tiny", "zero2"), world_size, nvme=True)
    for each in found:
        assert each.resolved == resolve(each.run, world_size)
        shape = strategies._shipped(each.name.removesuffix("+recompute"))["zero_optimization"]
        assert each.resolved.stage == shape["stage"]
        assert each.resolved.offload_optimizer == shape.get("offload_optimizer", {}).get("device")
        assert each.resolved.offload_param == shape.get("offload_param", {}).get("device")
        assert each.recompute == each.name.endswith("+recompute")


def test_a_run_that_does_not_resolve_is_an_error() -> None:
    with pytest.raises(ConfigErrors, match="do not fit together on 3 data-parallel ranks"):
        candidates(run("tiny", "zero2", global_batch_size=16), 3)
