"""Bandwidths, bounds and stages, against formulas written out and a ring that is played."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from fractions import Fraction
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from ds_llama.bench import comm, comm_stages
from ds_llama.cli import bench_comm_table, commands
from ds_llama.cli.main import main
from ds_llama.config import preset
from ds_llama.config.resolve import resolve
from ds_llama.measure import bus
from ds_llama.planner.hardware import find

# nccl-tests, doc/PERFORMANCE.md, "Summary".
FORMULAS: dict[str, Callable[[int], Fraction]] = {
    "all_reduce": lambda n: Fraction(2 * (n - 1), n),
    "reduce_scatter": lambda n: Fraction(n - 1, n),
    "all_gather": lambda n: Fraction(n - 1, n),
    "all_to_all": lambda n: Fraction(n - 1, n),
    "broadcast": lambda n: Fraction(1),
    "reduce": lambda n: Fraction(1),
    "send_recv": lambda n: Fraction(1),
}
RANKS = st.integers(2, 4096)
SAMPLES = st.lists(st.floats(1e-6, 1e3), min_size=5, max_size=9)


def timed(kind: str, size: int, samples: list[float], dtype: str = "bf16") -> dict[str, Any]:
    return {
        "collective": kind,
        "dtype": dtype,
        "bytes": size,
        "calls": 3,
        "samples_s": samples,
        "reason": None,
    }


def check_row(kind: str, ranks: int, size: int, samples: list[float]) -> None:
    row = comm.row(timed(kind, size, samples), ranks)
    median = statistics.median(samples)
    assert row["seconds"]["median"] == pytest.approx(median)
    assert row["seconds"]["p10"] <= row["seconds"]["median"] <= row["seconds"]["p90"]
    assert row["calls"] == 3 * len(samples)
    assert row["algorithm_bytes_per_s"] == pytest.approx(size / median)
    expected = size / median * float(FORMULAS[kind](ranks))
    assert row["bus_bytes_per_s"] == pytest.approx(expected)


@given(st.sampled_from(sorted(FORMULAS)), RANKS, st.integers(8, 2**40), SAMPLES)
def test_bandwidths_are_those_of_nccl_tests(
    kind: str, ranks: int, size: int, samples: list[float]
) -> None:
    check_row(kind, ranks, size, samples)


def test_a_wrong_factor_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus, "factor", lambda kind, ranks: (ranks - 1) / ranks)
    check_row("all_gather", 4, 2**20, [0.5] * 5)
    with pytest.raises(AssertionError):
        check_row("all_reduce", 4, 2**20, [0.5] * 5)


@pytest.mark.parametrize("ranks", [2, 3, 5, 8])
def test_a_ring_sends_what_the_factor_says(ranks: int) -> None:
    """An all-reduce played on a ring: every rank ends with the sums, having sent so many chunks."""
    held = [[100 * rank + chunk for chunk in range(ranks)] for rank in range(ranks)]
    sums = [sum(column) for column in zip(*held, strict=True)]
    sent = 0
    for step in range(ranks - 1):
        moving = [(rank, (rank - step) % ranks) for rank in range(ranks)]
        values = [held[rank][chunk] for rank, chunk in moving]
        for (rank, chunk), value in zip(moving, values, strict=True):
            held[(rank + 1) % ranks][chunk] += value
        sent += 1
    scattered = sent
    assert all(held[rank][(rank + 1) % ranks] == sums[(rank + 1) % ranks] for rank in range(ranks))
    for step in range(ranks - 1):
        moving = [(rank, (rank + 1 - step) % ranks) for rank in range(ranks)]
        values = [held[rank][chunk] for rank, chunk in moving]
        for (rank, chunk), value in zip(moving, values, strict=True):
            held[(rank + 1) % ranks][chunk] = value
        sent += 1
    assert held == [sums] * ranks
    assert bus.factor("reduce_scatter", ranks) == pytest.approx(scattered / ranks)
    assert bus.factor("all_gather", ranks) == pytest.approx((sent - scattered) / ranks)
    assert bus.factor("all_reduce", ranks) == pytest.approx(sent / ranks)


def document(ranks: int, bytes_per_s: float, **keys: Any) -> dict[str, Any]:
    """What a machine gives on which every collective reaches the same bus bandwidth."""
    sizes = [2**12, 2**20, 2**28]
    found = [
        timed(kind, size, [size * bus.factor(kind, ranks) / bytes_per_s] * 5, dtype)
        for kind, dtype in comm.series("bf16", "bf16")
        for size in sizes
    ]
    lacking = {**timed("reduce", 2**34, [], "fp32"), "samples_s": None, "reason": "needs more"}
    result = {"device": "cpu", "backend": "gloo", "world_size": ranks, "timed": [*found, lacking]}
    return comm.document({**result, **keys})


def stages_of(ranks: int) -> list[comm_stages.Stage]:
    run = comm_stages.read_run(None)
    return comm_stages.stages(run, resolve(run, ranks, device="cpu"))


@settings(max_examples=8)
@given(st.integers(2, 64), st.floats(1e6, 1e12))
def test_a_stage_takes_its_bytes_at_the_bandwidth(ranks: int, bytes_per_s: float) -> None:
    found = document(ranks, bytes_per_s)
    assert found["link"]["bytes_per_s"] == pytest.approx(bytes_per_s)
    assert found["link"]["latency_s"] == pytest.approx(4096 / bytes_per_s)
    for row in found["rows"]:
        assert row["ring_s"] == pytest.approx(row["seconds"]["median"])
    told = [comm_stages.told(stage, found, None) for stage in stages_of(ranks)]
    assert [each["stage"] for each in told] == [0, 1, 2, 3]
    assert [each["own"] for each in told] == [False, False, True, False]
    weights = preset(comm_stages.PRESET).num_parameters * 2
    around = weights * (ranks - 1) / ranks
    assert told[0]["sentence"].startswith("stage 0 is refused: bf16 at ZeRO stage 0 takes")
    # DeepSpeed all-reduces gradients at stages 1 and 2 (planner.traffic), then gathers weights.
    assert told[1]["link_bytes"] == pytest.approx(3 * around, rel=1e-6)
    assert told[2]["link_bytes"] == pytest.approx(3 * around, rel=1e-6)
    assert 2 * around < told[3]["link_bytes"] < 5 * around
    for each in told[1:]:
        assert each["seconds"] == pytest.approx(each["link_bytes"] / bytes_per_s)
        assert each["compute_s"] is None
        assert each["sentence"].startswith(f"stage {each['stage']} moves ")


def test_stage_0_all_reduces_its_gradients_once() -> None:
    run = comm_stages.read_run(None)
    run = run.model_copy(update={"deepspeed": {**run.deepspeed, "bf16": {"enabled": False}}})
    resolved = resolve(run, 4, device="cpu")
    assert comm_stages.dtypes(resolved) == ("fp32", "fp32")
    told = comm_stages.told(comm_stages.stages(run, resolved)[0], document(4, 1e9), None)
    weights = preset(comm_stages.PRESET).num_parameters * 4
    assert told["link_bytes"] == pytest.approx(2 * weights * 3 / 4)


def test_computation_is_told_where_the_device_is_known() -> None:
    told = comm_stages.told(stages_of(8)[3], document(8, 4e11), find("h100"))
    assert 0.01 < told["compute_s"] < 1
    assert told["compute_source"] == find("h100").source
    ratio = told["seconds"] / told["compute_s"]
    assert f", {ratio:.2g} times the " in told["sentence"]
    assert told["sentence"].endswith(" that the plan has it compute")


def test_what_was_not_measured_is_no_number() -> None:
    found = document(2, 1e9)
    found["rows"] = [row for row in found["rows"] if row["collective"] != "all_gather"]
    told = comm_stages.told(stages_of(2)[2], found, None)
    assert told["seconds"] is None
    words = "how long that takes is not known: all_gather not measured"
    assert told["sentence"].endswith(words)


def test_the_nearest_size_and_the_right_dtype_count() -> None:
    rows = [
        {"collective": "all_reduce", "dtype": dtype, "bytes": size, "bus_bytes_per_s": size + extra}
        for dtype, extra in (("bf16", 1), ("fp32", 2))
        for size in (4096, 2**20, 2**24)
    ]
    assert comm_stages.rate(rows, "all_reduce", "fp32", 2**21) == 2**20 + 2
    assert comm_stages.rate(rows, "all_reduce", "bf16", 2**23) == 2**24 + 1
    assert comm_stages.rate(rows, "all_reduce", "bf16", 0) == 4097
    assert comm_stages.rate(rows, "all_reduce", "fp16", 2**20) is None
    assert comm_stages.rate(rows, "reduce", "bf16", 2**20) is None


def test_a_stage_that_the_run_cannot_take_says_why() -> None:
    told = comm_stages.told(comm_stages.Stage("zero3", reason="no"), document(2, 1e9), None)
    assert (told["stage"], told["seconds"]) == (3, None)
    assert told["sentence"] == "stage 3 is refused: no"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(2.14, "2.14 s"), (999.7, "1,000 s"), (0.35, "350 ms"), (8.12e-5, "81.2 us"), (0.0, "0 us")],
)
def test_seconds_are_short(seconds: float, words: str) -> None:
    assert comm_stages.format_seconds(seconds) == words


@pytest.mark.parametrize("width", [100, 80, 60, 40])
def test_the_table_fits(width: int) -> None:
    found = document(2, 1.4e9)
    found["run"] = "llama-3.2-1b"
    found["stages"] = [comm_stages.told(stage, found, None) for stage in stages_of(2)]
    out = StringIO()
    bench_comm_table.draw(found, Console(file=out, width=width, highlight=False))
    text = out.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    joined = " ".join(text.split())
    assert "2 ranks on cpu, gloo" in joined
    assert "link: 1.4 GB/s each way between neighbours" in joined
    assert "an all-reduce moves 2(2 - 1)/2 = 1 times its payload" in joined
    assert "left out: 16 GiB of reduce fp32: the first needs more" in joined
    assert "- stage 2 moves 3.71 GB a step over each link: 2.65 s at 1.4 GB/s" in joined
    assert ("of link" in joined) == (width >= 56)
    assert ("alg GB/s" in joined) == (width >= 80)


@pytest.mark.parametrize(
    ("words", "what", "where"),
    [
        (["--nproc", "1"], "one process has no links: there is nothing to measure", "--nproc"),
        (["--sizes", "1MiB,2G"], "'2G' is not a size in bytes", "--sizes"),
        (["--sizes", "4"], "4 bytes are less than an element for each of 2 ranks", "--sizes"),
        (["--sizes", ""], "'' is not a size in bytes", "--sizes"),
        (["--run", "none.json"], "", "none.json"),
    ],
)
def test_wrong_calls_are_one_error(
    words: list[str], what: str, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "comm", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {what}")
    assert f"where: {where}" in error
    assert "remedy: " in error


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["bench", "comm", "--out", str(tmp_path / "file" / "x")]) == 2
    assert "error: the folder cannot be made: " in capsys.readouterr().err


def test_comm_is_a_command_of_its_own_in_the_place_of_the_case() -> None:
    entry, rest = commands.split(["bench", "comm", "--json"])
    assert (entry.name, entry.module, rest) == ("bench comm", "bench_comm", ["--json"])
    for words in (["./comm", "--json"], []):
        assert commands.split(["bench", *words]) == (commands.find("bench"), words)


def test_a_profile_of_another_kind_of_device_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    gpu = "NVIDIA H100 80GB HBM3"
    assert comm_stages.profile() is None
    assert comm_stages.hardware("cpu", None) is None
    assert comm_stages.hardware(gpu, None) == find("h100")
    path = tmp_path / "ds_llama" / "hardware.json"
    path.parent.mkdir()
    own = {"key": "cpu", "tflops": {"bfloat16": 1.0}, "sources": {"tflops": "here"}, "shared": True}
    path.write_text(json.dumps(own))
    found = comm_stages.profile()
    assert found is not None
    assert comm_stages.hardware("cpu", found) is found
    assert comm_stages.hardware(gpu, found) == find("h100")


def test_a_damaged_profile_is_said_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "ds_llama").mkdir()
    (tmp_path / "ds_llama" / "hardware.json").write_text("{")
    assert main(["bench", "comm"]) == 2
    assert "error: the file is not a hardware profile: " in capsys.readouterr().err


@given(st.floats(0, 1e3))
def test_slow_calls_are_timed_less_often_and_still_often_enough(call_s: float) -> None:
    from ds_llama.measure.links import SAMPLES, SLOW_S, samples_of

    assert samples_of(call_s) >= 5
    assert (samples_of(call_s) < SAMPLES) == (call_s >= SLOW_S)


@given(st.floats(0, 1), st.floats(0, 1e-6), st.integers(1, 2**20), st.integers(2, 64))
def test_what_a_larger_size_takes_is_on_the_line(
    latency_s: float, byte_s: float, size: int, times: int
) -> None:
    from ds_llama.measure.links import expected

    def takes(number: int) -> float:
        return latency_s + byte_s * number

    timed = [(each, takes(each)) for each in (size, times * size)]
    assert expected([], size) == 0.0
    assert expected(timed[:1], 10 * size) == timed[0][1]
    wanted = takes(times**2 * size)
    assert expected(timed, times**2 * size) == pytest.approx(wanted, rel=1e-3, abs=1e-9)


def test_sizes_beyond_the_time_that_there_is_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch
    import torch.distributed as dist

    from ds_llama.measure.links import Links

    if Path("/sys/class/net/lo").exists():
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        links = Links(torch.device("cpu"), budget_s=1e-9)
        small, large = links.measure([("all_reduce", "fp32")], [2**16, 2**12])
    finally:
        dist.destroy_process_group()
    assert (small.bytes, small.reason) == (2**12, None)
    assert len(small.samples_s or ()) >= 5
    assert (large.bytes, large.samples_s) == (2**16, None)
    assert (large.reason or "").startswith("would take about ")
