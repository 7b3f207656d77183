"""`dl.plan`: the interface that scripts read, what is recommended, and what nobody can use."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ds_llama as dl
from ds_llama.errors import CallError, ConfigErrors
from ds_llama.planner import recommend
from ds_llama.planner.plan import Plan, Strategy
from ds_llama.planner.recommend import ranked
from tests.unit.planner.runs import run

TERMS = ["parameters", "gradients", "master", "optimizer"]
TERMS += ["buckets", "activations", "logits", "other"]
SEVEN = run(global_batch_size=64)


def planned(**arguments: Any) -> Plan:
    return dl.plan(SEVEN, **{"world_size": 8, "gpu_memory": "80GiB", **arguments})


def test_the_interface_to_the_letter() -> None:
    tree = dl.plan(SEVEN, world_size=8, gpu_memory="80GiB").to_dict()
    assert json.loads(json.dumps(tree)) == tree
    assert tree["world_size"] == 8
    assert {"strategies", "recommended", "reason"} <= tree.keys()
    keys = {"name", "stage", "offload", "device", "host", "nvme_bytes", "traffic"}
    keys |= {"tokens_per_s", "mfu", "fits", "limit"}
    for row in tree["strategies"]:
        assert keys <= row.keys()
        assert {"peak_bytes", "steady_bytes", "terms"} <= row["device"].keys()
        assert {"peak_bytes", "pinned_bytes"} <= row["host"].keys()
        assert list(row["device"]["terms"]) == TERMS
        assert sum(row["device"]["terms"].values()) == row["device"]["peak_bytes"]
        assert sum(row["device"]["steady_terms"].values()) == row["device"]["steady_bytes"]
        assert 0 < row["device"]["steady_bytes"] <= row["device"]["peak_bytes"]
        assert row["fits"] is (row["verdict"] == "fits")
        assert (row["limit"] is None) == row["fits"]
        assert row["tokens_per_s"] is None
        assert row["mfu"] is None
    assert tree["recommended"] in [row["name"] for row in tree["strategies"] if row["fits"]]


def sizes_of(plan: Plan, name: str) -> dict[str, tuple[Any, str]]:
    row = next(row for row in plan.to_dict()["strategies"] if row["name"] == name)
    return {size["key"]: (size["value"], size["why"]) for size in row["sizes"]}


def test_sizes_are_those_of_the_strategy_with_their_reasons() -> None:
    plan = planned()
    for row in plan.strategies:
        zero = row.candidate.resolved.deepspeed["zero_optimization"]
        found = sizes_of(plan, row.name)
        assert {key: zero[key] for key in found} == {key: size for key, (size, _) in found.items()}
        assert "as the run says" not in {why for _, why in found.values()}
    block = dl.preset("llama-7b").num_block_parameters
    size, why = sizes_of(plan, "zero2")["reduce_bucket_size"]
    assert (size, why) == (block, "one block, reduced while the one below it runs backward")
    # With fp32 sums of several micro-batches, which DeepSpeed has a class of its own for.
    assert set(sizes_of(plan, "zero1")) == {"allgather_bucket_size"}
    assert sizes_of(plan, "zero3")["overlap_comm"][0] is True
    assert sizes_of(plan, "zero2")["overlap_comm"][0] is False


def test_a_size_that_the_run_says_is_the_runs() -> None:
    zero = {"stage": 2, "reduce_bucket_size": 12345678}
    said = run("llama-7b", {"bf16": {"enabled": True}, "zero_optimization": zero})
    plan = dl.plan(said, world_size=8, gpu_memory="80GiB")
    assert sizes_of(plan, plan.own.name)["reduce_bucket_size"] == (12345678, "as the run says")


def test_hardware_gives_speed_and_its_memory() -> None:
    plan = dl.plan(SEVEN, world_size=8, hardware="h100", price=2.5)
    assert plan.machine.gpu_bytes == 81559 * 2**20  # what nvidia-smi reports
    for row in plan.strategies:
        tree = row.to_dict()
        assert tree["tokens_per_s"] == pytest.approx(8 * tree["tokens_per_s_per_gpu"])
        assert 0 < tree["mfu"] < 1
        hours = 1e9 / tree["tokens_per_s"] * 8 / 3600
        assert tree["gpu_hours_per_billion_tokens"] == pytest.approx(hours)
        assert tree["cost_per_billion_tokens"] == pytest.approx(2.5 * hours)
    smaller = dl.plan(SEVEN, world_size=8, hardware="h100", gpu_memory="40GiB")
    assert smaller.machine.gpu_bytes == 40 * 2**30


def test_the_host_is_a_node_of_ranks() -> None:
    one, two = (planned(gpus_per_node=size).strategy("zero3_offload") for size in (8, 4))
    assert one is not None
    assert two is not None
    assert one.host_bytes == 8 * one.memory.host_peak_bytes == 2 * two.host_bytes > 0


def test_without_memory_nothing_is_judged() -> None:
    plan = dl.plan(SEVEN, world_size=8)
    assert {row.fit.verdict for row in plan.strategies} == {None}
    assert {row.to_dict()["fits"] for row in plan.strategies} == {None}
    assert plan.recommended is None
    assert plan.reason.startswith(
        "give --gpu-memory or --hardware to learn what fits; the smallest"
    )


def test_what_plan_reads_is_what_load_run_reads(tmp_path: Any) -> None:
    tree = {"model": {"preset": "llama-7b"}, "data": {"train": "x"}}
    path = tmp_path / "run.json"
    path.write_text(json.dumps(tree))
    overrides = ["train.global_batch_size=64", "train.micro_batch_size=4"]
    plans = [
        dl.plan(source, *overrides, world_size=8, gpu_memory=80 * 2**30)
        for source in (tree, path, str(path))
    ]
    assert plans[0].to_dict() == plans[1].to_dict() == plans[2].to_dict() == planned().to_dict()


def test_a_batch_that_the_world_does_not_divide_is_the_runs_mistake() -> None:
    with pytest.raises(ConfigErrors, match="do not fit together on 7 data-parallel ranks"):
        planned(world_size=7)


# What is recommended


def rows_of(**arguments: Any) -> list[Strategy]:
    return list(planned(**arguments).strategies)


def test_without_speed_the_fewest_bytes_win() -> None:
    plan = planned()
    order = ranked(plan.strategies)
    keys = [(row.moved_bytes, row.candidate.recompute, row.peak_bytes) for row in order]
    assert keys == sorted(keys)
    assert order[0].name == plan.recommended
    assert order[1].name == plan.runner_up
    assert plan.rule.endswith(recommend.RULE_BY_BYTES)
    assert plan.reason.startswith(f"{plan.recommended}: moves the fewest bytes in a step of the ")
    assert plan.runner_up_reason is not None
    assert plan.runner_up_reason.startswith(f"runner-up {plan.runner_up}: ")


def test_with_speed_the_fastest_wins_and_a_tie_goes_to_the_fewest_bytes() -> None:
    rows = rows_of(hardware="h100")
    plain = [row for row in rows if row.fit.verdict == "fits"]
    for row in plain:
        faster = [
            replace(other, tokens_per_s=1100.0 if other is row else 1000.0) for other in plain
        ]
        assert ranked(faster)[0].name == row.name
    same = [replace(row, tokens_per_s=1000.0 + index) for index, row in enumerate(plain)]
    plainest = [row for row in same if "offload" not in row.name]
    least = min(
        plainest, key=lambda row: (row.moved_bytes, row.candidate.recompute, row.peak_bytes)
    )
    assert ranked(same)[0] == least
    said = recommend.reason(ranked(same), rows[0].machine)
    assert "within 5% of the fastest" in said
    assert "does not offload" in said
    said = recommend.reason(ranked(plainest), rows[0].machine)
    assert "moves the fewest bytes" in said


def test_a_row_without_speed_comes_last_among_rows_with() -> None:
    rows = [row for row in rows_of(hardware="h100") if row.fit.verdict == "fits"]
    unknown = replace(rows[0], tokens_per_s=None)
    assert ranked([unknown, *rows[1:]])[-1] is unknown


@settings(max_examples=8)
@given(
    st.floats(2**30, 2**38),
    st.sampled_from(["h100", None]),
    st.sampled_from([1, 8, 64, 1024]),
    st.sampled_from(["llama-7b", "llama-3.1-70b"]),
)
def test_what_is_recommended_fits(
    gpu_bytes: float, hardware: str | None, world_size: int, preset: str
) -> None:
    plan = dl.plan(
        run(preset, "zero3"), world_size=world_size, gpu_memory=int(gpu_bytes), hardware=hardware
    )
    fitting = [row.name for row in plan.strategies if row.fit.verdict == "fits"]
    assert (plan.recommended is None) == (not fitting)
    if fitting:
        best = plan.strategy(plan.recommended or "")
        assert best is not None
        assert best.name in fitting
        assert best.peak_bytes + best.reserve_bytes <= gpu_bytes
        assert plan.runner_up in (set(fitting) - {best.name} or {None})
        assert not plan.changes
    else:
        assert plan.reason.startswith("nothing fits. The nearest is ")


# Where nothing fits


def test_each_change_that_is_named_makes_it_fit() -> None:
    given = run("llama-3.1-70b", "zero3", "data.sequence_length=8192")
    plan = dl.plan(given, world_size=8, gpu_memory="80GiB", host_memory="512GiB")
    assert plan.recommended is None
    found = {each.change: each for each in plan.changes}
    larger = next(each for each in plan.changes if each.change.startswith("on "))
    again = dl.plan(given, world_size=larger.world_size, gpu_memory="80GiB", host_memory="512GiB")
    row = again.strategy(larger.strategy)
    assert row is not None
    assert (row.fit.verdict, row.peak_bytes) == ("fits", larger.peak_bytes)
    before = dl.plan(
        given, world_size=larger.world_size - 8, gpu_memory="80GiB", host_memory="512GiB"
    )
    assert before.recommended is None
    host = next(each for each in plan.changes if "of host memory" in each.change)
    assert host.strategy.startswith("zero3_offload")
    for words, change in found.items():
        assert f"{words} ({change.strategy})" in plan.reason


def test_a_smaller_micro_batch_is_tried_before_a_shorter_sequence() -> None:
    given = run("llama-7b", "zero3", "data.sequence_length=32768", micro_batch_size=8)
    plan = dl.plan(given, world_size=8, gpu_memory="40GiB")
    assert plan.recommended is None
    assert plan.changes[0].change == "with train.micro_batch_size=1"
    again = dl.plan(
        run("llama-7b", "zero3", "data.sequence_length=32768", micro_batch_size=1),
        world_size=8,
        gpu_memory="40GiB",
    )
    row = again.strategy(plan.changes[0].strategy)
    assert row is not None
    assert (row.fit.verdict, row.peak_bytes) == ("fits", plan.changes[0].peak_bytes)


def test_recomputation_that_the_run_forbids_is_the_first_change() -> None:
    given = run("llama-7b", "zero3", "data.sequence_length=8192", "train.recompute=null")
    plan = dl.plan(given, world_size=8, gpu_memory="40GiB")
    assert plan.recommended is None
    assert plan.changes[0].change == "with recomputation"


def test_what_nothing_helps_is_said_so() -> None:
    plan = dl.plan(run("llama-7b"), world_size=1, gpu_memory="1MiB")
    assert plan.recommended is None
    assert plan.changes == ()
    assert plan.reason.endswith("No change that was tried makes it fit.")


def test_tight_is_no_recommendation() -> None:
    row = planned().strategy("zero3_offload+recompute")
    assert row is not None
    plan = planned(gpu_memory=row.peak_bytes)
    verdicts = {each.fit.verdict for each in plan.strategies}
    assert verdicts == {"tight", "no"}
    assert plan.recommended is None
    assert "fits only into what is kept free" in plan.reason


# What means nothing


@pytest.mark.parametrize(
    ("arguments", "where", "what"),
    [
        ({"world_size": 0}, "--world-size", "0 is not a number of devices"),
        ({"world_size": -8}, "--world-size", "-8 is not a number of devices"),
        ({"world_size": 1.5}, "--world-size", "1.5 is not a number of devices"),
        ({"world_size": True}, "--world-size", "True is not a number of devices"),
        ({"world_size": 10**7}, "--world-size", "10000000 is not a number of devices"),
        ({"gpus_per_node": 0}, "--gpus-per-node", "0 is not a number of devices"),
        ({"gpu_memory": 0}, "--gpu-memory", "0 is no size that a memory has"),
        ({"gpu_memory": -1}, "--gpu-memory", "-1 is not a size in bytes"),
        ({"gpu_memory": "80G"}, "--gpu-memory", "'80G' is not a size in bytes"),
        ({"gpu_memory": "nan"}, "--gpu-memory", "'nan' is not a size in bytes"),
        ({"gpu_memory": "1e30"}, "--gpu-memory", "'1e30' is no size that a memory has"),
        ({"gpu_memory": "0.2B"}, "--gpu-memory", "'0.2B' is no size that a memory has"),
        ({"gpu_memory": "80"}, "--gpu-memory", "'80' is no size that a memory has"),
        ({"host_memory": "lots"}, "--host-memory", "'lots' is not a size in bytes"),
        ({"nvme": "-4TiB"}, "--nvme", "'-4TiB' is not a size in bytes"),
        ({"hardware": "h1000"}, "--hardware", 'unknown hardware "h1000"'),
        ({"hardware": "h100", "price": math.nan}, "--price", "nan is not a price"),
        ({"hardware": "h100", "price": 0}, "--price", "0 is not a price"),
        ({"hardware": "h100", "price": -2.5}, "--price", "-2.5 is not a price"),
        ({"hardware": "h100", "price": math.inf}, "--price", "inf is not a price"),
        ({"price": 2.5}, "--price", "a price needs a predicted speed"),
        ({"internode": "400Gb/s"}, "--internode", "only time depends on the network"),
        ({"max": "batch"}, "--max", "'batch' is nothing to find the largest of"),
        ({"gpu_memory": None, "max": "sequence"}, "--max", "the largest that fits depends"),
        ({"strategy": "zero2"}, "--strategy", "--strategy says what is written"),
    ],
)
def test_what_means_nothing_is_one_clear_error(
    arguments: dict[str, Any], where: str, what: str
) -> None:
    with pytest.raises(CallError) as raised:
        planned(**arguments)
    assert raised.value.exit_code == 2
    assert raised.value.where == where
    assert raised.value.what.startswith(what)
    assert raised.value.remedy


def test_the_nearest_hardware_is_named() -> None:
    with pytest.raises(CallError) as raised:
        planned(hardware="h1000")
    assert raised.value.remedy.startswith('did you mean "h100"? known: ')


def test_hardware_without_a_figure_is_not_asked_for_again() -> None:
    """V100 has no bf16, and its speed at it is unknown, not guessed."""
    found = planned(hardware="v100")
    assert all(row.tokens_per_s is None and row.mfu is None for row in found.strategies)
    assert found.rule.startswith("v100-sxm-32gb has no figures for bfloat16")
    assert planned(gpu_memory=None).rule.startswith("without --hardware")
    assert planned(gpu_memory=None).reason.startswith("give --gpu-memory or --hardware")


def test_what_nvidia_smi_says_is_hardware() -> None:
    assert planned(hardware="NVIDIA H100 80GB HBM3").hardware == "h100-sxm"


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 1000, 99_999, 100_000])
def test_any_world(world_size: int) -> None:
    plan = dl.plan(run(), world_size=world_size, hardware="a100")
    assert plan.world_size == world_size
    assert plan.recommended is not None
