"""What launches come to: medians, rates, shares."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.bench.harness import Options, run_case
from ds_llama.bench.rows import quantile
from ds_llama.bench.runs import run_json, swap_folder
from ds_llama.config import preset
from ds_llama.errors import ConfigError, DataError
from tests.unit.bench.conftest import Launches, case_of, measured, run


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_quantiles_are_numpys(values: list[float], share: float) -> None:
    assert quantile(values, share) == pytest.approx(np.quantile(values, share), abs=1e-6)


def test_a_row_is_made_of_its_launches(tmp_path: Path, launches: Launches) -> None:
    row, _ = run(case_of(), tmp_path, launches)
    tokens = 63  # as the ranks counted: of 64, one has nothing before it
    assert row["tokens_per_step"] == tokens
    assert row["step_s"]["median"] == statistics.median([1.0, 2.0, 3.0] * 2)
    assert row["step_s"]["steps"] == 6
    assert row["step_s"]["spread"] == 0
    assert row["tokens_per_s"] == row["tokens_per_s_per_device"] == tokens / 2
    flops = preset("tiny").flops_per_token(64)
    assert row["mfu"] == pytest.approx(tokens / 2 * flops / 1e11)
    assert row["hfu"] == pytest.approx(row["mfu"] * 1.25)
    assert row["data_wait_share"] == pytest.approx(0.01)
    assert row["imbalance"] == 1.2
    assert row["memory"]["measured"]["device_peak_bytes"] == 1000
    assert row["memory"]["predicted"]["device_peak_bytes"] > 1000
    assert row["joules_per_token"] is None
    assert row["parts_step_s"] == 1.5  # beside the 2.0 of a step that was not taken apart
    assert row["config"]["seed"] == 1234
    assert row["config"]["run"]["deepspeed"]["zero_optimization"]["stage"] == 1
    assert row["format_version"] == 1
    assert json.loads(json.dumps(row)) == row


def test_rows_of_a_later_version_are_neither_kept_nor_replaced(
    tmp_path: Path, launches: Launches
) -> None:
    run(case_of(), tmp_path, launches)
    path = tmp_path / "rows.jsonl"
    text = path.read_text().replace('"format_version":1', '"format_version":2', 1)
    path.write_text(text)
    with pytest.raises(DataError, match=r"format_version is 2, .* reads up to 1"):
        run(case_of(), tmp_path, launches)
    assert path.read_text() == text


def test_energy_is_a_tokens(tmp_path: Path, launches: Launches) -> None:
    launches.outcomes = [ends_with(joules=126.0, joules_of=["package-0"]), ends_with(), ends_with()]
    row, _ = run(case_of(), tmp_path, launches)
    assert row["joules_per_token"] == pytest.approx(126.0 / (63 * 3))  # of the launch that has it


def test_what_the_case_does_not_measure_is_null(tmp_path: Path, launches: Launches) -> None:
    lacking = dict.fromkeys(("phases", "parts_s", "traffic", "flops"))
    launches.outcomes = [ends_with(measure=[], **lacking)]
    row, _ = run(case_of(measure=[], repeats=1), tmp_path, launches)
    assert launches.plans[0]["measure"] == row["config"]["measure"] == []
    assert row["status"] == "ok"
    assert row["memory"]["measured"] is None
    assert row["memory"]["predicted"]["device_peak_bytes"] > 1000
    for name in ("parts_s", "parts_step_s", "traffic", "flops", "hfu"):
        assert row[name] is None, name
    assert row["mfu"] > 0


@pytest.mark.parametrize("offload", ["none", "all"])
def test_on_a_cpu_everything_is_device(offload: str, tmp_path: Path, launches: Launches) -> None:
    sweep = {"model": "tiny", "stage": 3, "offload": offload, "precision": "fp32"}
    case = case_of(sweep={**sweep, "sequence_length": 64}, repeats=1, device_memory="80GiB")
    (row,) = run(case, tmp_path / "cpu", launches)
    found = row["memory"]["predicted"]
    assert found["device_peak_bytes"] == found["total_peak_bytes"]
    assert found["device_peak_bytes"] == sum(found["peak_terms"].values())
    assert found["device_steady_bytes"] == sum(found["steady_terms"].values())
    assert found["device_steady_bytes"] == found["total_steady_bytes"]
    assert found["host_peak_bytes"] == 0
    assert row["traffic"]["planned"]["host_link_bytes"] == 0
    launches.outcomes = [ends_with(device="NVIDIA X")]
    (row,) = run_case(case, tmp_path / "cuda", launches, Options("cuda", {}))
    apart = row["memory"]["predicted"]
    assert (apart["device_peak_bytes"] < apart["total_peak_bytes"]) == (offload == "all")
    assert apart["host_peak_bytes"] > 0
    assert (row["traffic"]["planned"]["to_device_bytes"] > 10_000) == (offload == "all")


def ends_with(**keys: Any) -> Callable[[Path, Path], int]:
    def end(folder: Path, log: Path) -> int:
        (folder / "result.json").write_text(json.dumps(measured(**keys)))
        return 0

    return end


def test_the_case_is_laid_under_each_run(tmp_path: Path) -> None:
    given = {
        "optimizer": {"type": "Lion", "lr": 0.5},
        "train": {"seed": 7},
        "deepspeed": {"gradient_clipping": 2.0, "zero_optimization": {"overlap_comm": False}},
    }
    case = case_of(run=given)
    found = run_json(case, case.expanded[0], tmp_path)
    assert found["optimizer"]["type"] == "Lion"
    assert found["optimizer"]["lr"] == 0.5
    assert found["optimizer"]["weight_decay"] == 0.1
    assert found["train"]["seed"] == 7
    assert found["train"]["steps"] == 3 + case.steps
    assert found["deepspeed"]["gradient_clipping"] == 2.0
    assert found["deepspeed"]["zero_optimization"] == {"stage": 1, "overlap_comm": False}


def test_sections_that_are_axes_are_laid_under_their_cells_alone(tmp_path: Path) -> None:
    sweep = {"model": "tiny", "stage": 3, "precision": ["fp32", "bf16"], "recompute": [False, True]}
    offload = {"offload_optimizer": {"pin_memory": False}}
    deepspeed = {"activation_checkpointing": {"profile": True}, "zero_optimization": offload}
    case = case_of(sweep=sweep, run={"deepspeed": deepspeed | {"bf16": {"bf16_master": True}}})
    for cell in case.expanded:
        found = run_json(case, cell, tmp_path)["deepspeed"]
        assert ("bf16" in found) == (cell.precision == "bf16")
        assert ("activation_checkpointing" in found) == cell.recompute
        assert "offload_optimizer" not in found["zero_optimization"]
    assert deepspeed["activation_checkpointing"]  # the case itself is as it was


def test_what_is_compiled_is_the_axis_to_say(tmp_path: Path) -> None:
    """And another program's own business how."""
    sweep = {"model": "tiny", "program": ["ds_llama", "peer.py:way"], "compile": [False, True]}
    case = case_of(sweep=sweep, run={"train": {"compile": True}})
    found = {
        (cell.program, cell.compile): run_json(case, cell, tmp_path)["train"].get("compile")
        for cell in case.expanded
    }
    assert found.pop(("ds_llama", True)) is True
    assert set(found.values()) == {None}


@pytest.mark.parametrize(
    ("given", "where", "what"),
    [
        ({"train": {"steps": 9}}, "case:run.train.steps", "the case's own to say"),
        ({"deepspeed": "zero2"}, "case:run.deepspeed", "the case's own to say"),
        ({"model": {"preset": "llama-3-8b"}}, "case:run.model", "the case's own to say"),
        ({"trian": {}}, "case:run.trian", "unknown key 'trian'"),
        ({"optimizer": {"lr": "high"}}, "case:run.optimizer.lr", "'high': "),
        (
            {"deepspeed": {"zero_optimization": {"overlap_com": True}}},
            "case:run.deepspeed.zero_optimization.overlap_com",
            "unknown key 'overlap_com'",
        ),
    ],
)
def test_mistakes_in_the_run_are_no_rows(
    given: dict[str, Any], where: str, what: str, tmp_path: Path, launches: Launches
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(case_of(run=given), tmp_path, launches)
    assert caught.value.where == where
    assert what in caught.value.what
    assert caught.value.remedy


def test_swapping_has_a_folder_of_its_own(tmp_path: Path) -> None:
    """Which is removed: so it is nobody else's."""
    case = case_of(nvme_path=str(tmp_path))
    folders = {swap_folder(case, c, tmp_path / o) for c in case.expanded for o in "ab"}
    assert len(folders) == 4
    assert {folder.parent for folder in folders} == {tmp_path}
    assert all(folder.name.startswith("ds-llama-bench-") for folder in folders)
