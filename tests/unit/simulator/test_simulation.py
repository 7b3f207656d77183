"""Whole simulations: the ZeRO paper's bytes, every shipped JSON, and nothing touched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ds_llama.config import load_run
from ds_llama.config.shipped import find, names
from ds_llama.errors import CallError, ConfigError, ConfigErrors, RunError
from ds_llama.simulator import Request, Simulation, Simulator, simulate, simulate_many
from ds_llama.simulator.process import Outcome, resolved

N = 8
REFUSED = {
    "zero3_deepcompile": "compile.deepcompile lets a compiler decide",
    "zero3_superoffload": "super_offload updates the optimizer in a process of its own",
    "zero3_zenflow": "ZenFlow keeps every matrix transposed and does not go with zero.Init",
    "zero3_zeropp": "zero_quantized_weights packs weights in CUDA kernels",
}


def tree(**sections: Any) -> dict[str, Any]:
    """A run whose folders do not exist, over a model whose every parameter N divides."""
    return {
        "model": {"preset": "debug", "num_hidden_layers": 1},
        "data": {"train": "nowhere/shards", "sequence_length": 64},
        "train": {"steps": 2, "micro_batch_size": 1},
        "output": "nowhere/run",
        **sections,
    }


def paper(stage: int, **keys: Any) -> Request:
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0} if stage == 3 else {}
    deepspeed = {"bf16": {"enabled": True, **keys}, "zero_optimization": zero or {"stage": stage}}
    return Request(load_run(tree(deepspeed=deepspeed)), N)


def shipped(name: str) -> Request:
    json_has_one = "zenflow" in name
    optimizer = {} if json_has_one else {"optimizer": {"type": "AdamW", "lr": 1e-3}}
    # On one rank the optimizer's partition is large enough to be swapped (1 MiB).
    world_size = 1 if "nvme" in name else N
    return Request(load_run(tree(deepspeed=name, **optimizer)), world_size, steps=1)


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    """One process for this module, in a folder that must stay empty."""
    folder = tmp_path_factory.mktemp("simulated")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with Simulator() as started:
            yield started
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def outcomes(simulator: Simulator, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """All simulations of this module."""
    pretrained = tmp_path_factory.mktemp("pretrained")
    config = load_run(tree()).architecture
    assert config is not None
    (pretrained / "config.json").write_text(json.dumps(config.to_hf()))
    requests = {f"stage {stage}": paper(stage) for stage in (1, 2, 3)}
    requests["bf16 states"] = paper(
        2, bf16_master_weights_and_grads=True, bf16_optimizer_states=True
    )
    requests |= {name: shipped(name) for name in names() if name not in REFUSED}
    weights = tree(model={"pretrained": str(pretrained)})
    requests["pretrained"] = Request(load_run(weights), N, rank=N - 1)
    return dict(zip(requests, simulator.outcomes(list(requests.values()), jobs=2), strict=True))


def simulation(outcome: Outcome) -> Simulation:
    assert isinstance(outcome, Simulation), str(outcome)
    return outcome


def per_parameter(outcome: Outcome, category: str) -> float:
    found = simulation(outcome)
    return found.phase("step").device.now[category] / found.parameters


@pytest.mark.parametrize(
    ("stage", "parameters"), [(1, 2.0), (2, 2.0), (3, 2 / N)], ids=lambda value: f"{value}"
)
def test_bytes_are_the_papers(outcomes: dict[str, Outcome], stage: int, parameters: float) -> None:
    """Rajbhandari et al. 2019, figure 1: 2 + 12/N bytes a parameter; all of it over N at stage 3.

    Adam's counters are 4 bytes a group.
    """
    found = outcomes[f"stage {stage}"]
    assert per_parameter(found, "parameters") == parameters
    assert per_parameter(found, "master") == 4 / N
    counters = simulation(found).phase("step").device.now["optimizer"]
    assert 0 <= counters - simulation(found).parameters * 8 // N <= 16


def test_another_precision_is_seen(outcomes: dict[str, Outcome]) -> None:
    assert per_parameter(outcomes["bf16 states"], "optimizer") < 5 / N


@pytest.mark.parametrize("name", [name for name in names() if name not in REFUSED])
def test_every_shipped_json_simulates(outcomes: dict[str, Outcome], name: str) -> None:
    found = simulation(outcomes[name])
    assert [p.name for p in found.phases] == [
        *("construct", "initialise", "forward", "backward", "step")
    ]
    zero = resolved(shipped(name)).deepspeed["zero_optimization"]
    swapped = "nvme" in {(zero.get(key) or {}).get("device") for key in zero if "offload" in key}
    assert (found.nvme_bytes > 0) == swapped
    assert found.peak["device_bytes"] > 0


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_the_others_are_refused_with_their_reason(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(shipped(name))
    assert REFUSED[name] in str(caught.value)
    assert Path(str(find(name))).name in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "says", "own"),
    [
        ("Lion", "Lion is a compiled op", "Lion"),
        ("Adagrad", "Adagrad is a compiled op on the host", "Adagrad"),
        ("MuAdam", "MuAdam comes from the package mup", "AdamW"),
    ],
)
def test_an_optimizer_that_no_test_holds_is_refused(kind: str, says: str, own: str) -> None:
    deepspeed = {
        "optimizer": {"type": kind, "params": {"lr": 1e-3}},
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
        "zero_force_ds_cpu_optimizer": False,
    }
    with pytest.raises(ConfigError, match=says) as caught:
        resolved(Request(load_run(tree(deepspeed=deepspeed)), N))
    assert "optimizer.type" in str(caught.value)
    assert f'"optimizer": {{"type": "{own}"}}' in str(caught.value)


def test_compiled_blocks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"its code does not run on fake tensors") as caught:
        resolved(Request(load_run(tree(train={"steps": 9, "compile": True})), N))
    assert "`ds-llama plan` plays compiled blocks" in caught.value.remedy


def test_weights_are_not_read(outcomes: dict[str, Outcome]) -> None:
    assert simulation(outcomes["pretrained"]).rank == N - 1


def test_a_result_is_plain_data(outcomes: dict[str, Outcome]) -> None:
    found = simulation(outcomes["stage 3"]).to_dict()
    assert found["world_size"] == N
    assert set(found["peak"]) == {"device_bytes", "host_bytes", "total_bytes"}
    assert {"name", "device", "host", "total"} == set(found["phases"][0])
    assert {"now_bytes", "peak_bytes", "now", "peak"} == set(found["phases"][0]["device"])


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"world_size": 0}, CallError, "a world of 0 processes"),
        ({"world_size": -8}, CallError, "a world of -8 processes"),
        ({"rank": N}, CallError, f"there is no rank {N} in a world of {N}"),
        ({"steps": 0}, CallError, "0 steps"),
    ],
)
def test_a_wrong_call_is_said(changes: dict[str, int], error: type[Exception], says: str) -> None:
    request = Request(load_run(tree()), **({"world_size": N} | changes))
    with pytest.raises(error, match=says):
        simulate_many([request])


def test_a_world_that_does_not_divide_the_batch_is_said() -> None:
    run = load_run(tree(train={"steps": 1, "global_batch_size": 8, "micro_batch_size": 1}))
    with pytest.raises(ConfigErrors, match="do not fit together on 3 data-parallel ranks"):
        simulate(run, 3)


def test_time_is_limited(simulator: Simulator) -> None:
    (late,) = simulator.outcomes([Request(load_run(tree()), N)], timeout_s=0.05)
    assert isinstance(late, RunError)
    assert "took longer than its time limit" in str(late)


def test_an_error_inside_comes_back_as_one_of_ours(simulator: Simulator) -> None:
    steps: Any = "2"  # what no caller can say who is type checked
    (error,) = simulator.outcomes([Request(load_run(tree()), N, steps=steps)])
    assert isinstance(error, RunError)
    assert "fails in a way that is not known (TypeError" in error.what
    assert ".py:" in error.where
    assert "Traceback (most recent call last)" in str(error.__cause__)
