"""The order of launches, what is kept, and what failures become."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds_llama.bench.harness import Options, Progress, run_case
from ds_llama.bench.rows import read
from ds_llama.config.run import Run
from ds_llama.errors import CallError, ConfigError, RunError
from tests.unit.bench.conftest import Launches, case_of, measured, run


def test_rounds_go_over_all_cells(tmp_path: Path, launches: Launches) -> None:
    rows = run(case_of(repeats=3), tmp_path, launches)
    assert [plan["cell"]["stage"] for plan in launches.plans] == [1, 2, 1, 2, 1, 2]
    assert [len(row["repeats"]) for row in rows] == [3, 3]
    assert list(read(tmp_path).values()) == rows
    assert {row["provenance"]["commit"] for row in rows} == {"abc"}
    assert not list((tmp_path / "cells").iterdir())


def test_an_interrupted_case_is_gone_on_with(tmp_path: Path, launches: Launches) -> None:
    def stop(folder: Path, log: Path) -> int:
        raise KeyboardInterrupt

    launches.outcomes = [ends, ends, ends, stop]
    with pytest.raises(KeyboardInterrupt):
        run(case_of(), tmp_path, launches)
    again = Launches()
    rows = run(case_of(), tmp_path, again)
    assert [plan["cell"]["stage"] for plan in again.plans] == [2]
    assert [len(row["repeats"]) for row in rows] == [2, 2]
    more = Launches()
    run(case_of(repeats=3), tmp_path, more)
    assert len(more.plans) == 2


def test_a_torn_last_row_is_measured_again(tmp_path: Path, launches: Launches) -> None:
    run(case_of(repeats=1), tmp_path, launches)
    path = tmp_path / "rows.jsonl"
    path.write_text(path.read_text()[:-50])
    again = Launches()
    run(case_of(repeats=1), tmp_path, again)
    assert [plan["cell"]["stage"] for plan in again.plans] == [2]


@pytest.mark.parametrize(
    ("code", "text", "status", "reason"),
    [
        (124, "", "timeout", "not ended after 600 s"),
        (1, "x\ntorch.OutOfMemoryError: CUDA out of memory. Tried 3 GiB", "oom", "Tried 3 GiB"),
        (1, "DefaultCPUAllocator: can't allocate memory: you tried", "oom", "can't allocate"),
        (137, "", "oom", "signal 9"),
        (1, "[rank0]: ValueError: bad\nlast", "error", "ValueError: bad"),
        (3, "some words\n", "error", "exit code 3: some words"),
        (1, "", "error", "exit code 1: no word"),
        (0, "", "error", "exit code 0"),
    ],
)
def test_failures_are_rows(
    tmp_path: Path, launches: Launches, code: int, text: str, status: str, reason: str
) -> None:
    def fail(folder: Path, log: Path) -> int:
        log.write_text(text)
        return code

    launches.outcomes = [fail]
    first, second = run(case_of(), tmp_path, launches)
    assert first["status"] == status
    assert reason in first["reason"]
    assert second["status"] == "ok"
    assert len(launches.plans) == 3  # the one that failed is not tried a second time
    again = Launches()
    run(case_of(), tmp_path, again)
    assert len(again.plans) == (2 if status == "error" else 0)


def ends(folder: Path, log: Path) -> int:
    (folder / "result.json").write_text(json.dumps(measured()))
    return 0


def fails(folder: Path, log: Path) -> int:
    log.write_text("ValueError: no")
    return 1


def test_a_failure_keeps_what_was_measured_before(tmp_path: Path, launches: Launches) -> None:
    launches.outcomes = [ends, ends, fails, ends]
    first, _ = run(case_of(), tmp_path, launches)
    assert (first["status"], len(first["repeats"])) == ("error", 1)
    assert first["log"] == f"logs/{first['key']}-1.log"
    again = Launches()
    first, _ = run(case_of(), tmp_path, again)
    assert (first["status"], len(first["repeats"]), len(again.plans)) == ("ok", 2, 1)


def test_more_time_is_another_try(tmp_path: Path, launches: Launches) -> None:
    launches.outcomes = [lambda folder, log: 124]
    first, _ = run(case_of(timeout_s=5, repeats=1), tmp_path, launches)
    assert first["reason"] == "not ended after 5 s"
    assert first["timeout_s"] == 5
    for timeout_s, tries in ((4, 0), (5, 0), (6, 1)):
        again = Launches()
        run(case_of(timeout_s=timeout_s, repeats=1), tmp_path, again)
        assert len(again.plans) == tries


def test_a_rule_that_only_a_rank_knows_refuses(tmp_path: Path, launches: Launches) -> None:
    def refuse(folder: Path, log: Path) -> int:
        found = {"rule": "invalid", "reason": "fp16 is enabled"}
        (folder / "refused.json").write_text(json.dumps(found))
        return 1

    launches.outcomes = [refuse]
    first, _ = run(case_of(), tmp_path, launches)
    assert (first["status"], first["rule"]) == ("refused", "invalid")
    assert first["reason"] == "fp16 is enabled"
    assert len(launches.plans) == 3


def test_what_has_run_does_fit(tmp_path: Path, launches: Launches) -> None:
    """However little is free when its second launch comes."""
    run(case_of(repeats=1), tmp_path, launches)
    rows = run(case_of(repeats=2, host_memory="1MiB"), tmp_path, launches)
    assert [len(row["repeats"]) for row in rows] == [2, 2]


def test_other_cells_rows_stay(tmp_path: Path, launches: Launches) -> None:
    launches.outcomes = [fails, ends]
    run(case_of(repeats=1), tmp_path, launches)
    run_case(case_of(repeats=1), tmp_path, launches, Options("cpu", {}, only=["zero2"]))
    assert [row["status"] for row in read(tmp_path).values()] == ["error", "ok"]


def test_one_benchmark_in_a_folder_at_a_time(tmp_path: Path, launches: Launches) -> None:
    def meanwhile(folder: Path, log: Path) -> int:
        with pytest.raises(RunError, match="this folder is in use by process") as caught:
            run(case_of(), tmp_path, Launches())
        assert "another --out" in caught.value.remedy
        return ends(folder, log)

    launches.outcomes = [meanwhile]
    run(case_of(repeats=1), tmp_path, launches)
    run(case_of(repeats=1), tmp_path, launches)  # and is free afterwards


def test_what_the_call_names_has_to_be_there(tmp_path: Path, launches: Launches) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CallError, match="is a file, not a folder"):
        run(case_of(), tmp_path / "file", launches)
    sweep = {"model": "tiny", "program": ["ds_llama", "none.py:way"], "sequence_length": 64}
    with pytest.raises(CallError, match="names a program that is not there") as caught:
        run_case(case_of(sweep=sweep), tmp_path, launches, Options("cpu", {}, tmp_path))
    assert caught.value.where == str(tmp_path / "none.py")
    with pytest.raises(CallError, match="nvme_path nowhere is not a folder"):
        run(case_of(nvme_path="nowhere"), tmp_path, launches)


def test_rows_are_replaced_whole(tmp_path: Path, launches: Launches) -> None:
    """A disk that is full when a row is written leaves the rows that were there."""
    run(case_of(repeats=1), tmp_path, launches)
    before = (tmp_path / "rows.jsonl").read_bytes()
    (tmp_path / ".rows.jsonl.partial").mkdir()  # so that it cannot be written
    with pytest.raises(OSError, match="directory"):
        run(case_of(), tmp_path, launches)
    assert (tmp_path / "rows.jsonl").read_bytes() == before


def test_what_the_rules_refuse_is_a_row(tmp_path: Path, launches: Launches) -> None:
    sweep = {"model": "tiny", "stage": [0, 2], "precision": "bf16", "sequence_length": 64}
    rows = run(case_of(sweep=sweep, repeats=1), tmp_path, launches)
    assert [row["status"] for row in rows] == ["refused", "ok"]
    assert rows[0]["rule"] == "half-at-stage-0"
    assert "phantom" in rows[0]["reason"]


def test_what_does_not_fit_is_a_row_with_the_plans_word(tmp_path: Path, launches: Launches) -> None:
    rows = run(case_of(host_memory="1MiB", repeats=1), tmp_path, launches)
    assert {row["rule"] for row in rows} == {"does-not-fit"}
    assert "1 MiB are free" in rows[0]["reason"]
    assert not launches.plans


def test_another_cases_folder_is_refused(tmp_path: Path, launches: Launches) -> None:
    run(case_of(repeats=1), tmp_path, launches)
    with pytest.raises(RunError, match=r"another case \(steps differ\)") as caught:
        run(case_of(steps=4), tmp_path, launches)
    assert "--out" in caught.value.remedy


def test_a_folder_older_than_a_key_of_cases_is_gone_on_with(
    tmp_path: Path, launches: Launches
) -> None:
    run(case_of(repeats=1), tmp_path, launches)
    path = tmp_path / "case.json"
    written = json.loads(path.read_text())
    assert written.pop("measure") == ["counts", "parts"]
    path.write_text(json.dumps(written))
    rows = run(case_of(repeats=2), tmp_path, launches)
    assert [len(row["repeats"]) for row in rows] == [2, 2]
    with pytest.raises(RunError, match=r"another case \(measure differ\)"):
        run(case_of(measure=["counts"]), tmp_path, launches)


def test_a_case_that_has_no_rows_yet_may_be_mended(tmp_path: Path, launches: Launches) -> None:
    with pytest.raises(ConfigError):
        run(case_of(run={"trian": {}}), tmp_path, launches)
    rows = run(case_of(repeats=1), tmp_path, launches)
    assert [row["status"] for row in rows] == ["ok", "ok"]


def test_progress_says_what_is_left(tmp_path: Path, launches: Launches) -> None:
    said = list[Progress]()
    run_case(case_of(), tmp_path, launches, Options("cpu", {}, say=said.append))
    assert [(each.done, each.total) for each in said] == [(n, 4) for n in (1, 2, 3, 4)]
    assert said[-1].left_s == 0


def test_launches_that_will_not_be_made_are_not_waited_for(
    tmp_path: Path, launches: Launches
) -> None:
    said = list[Progress]()
    launches.outcomes = [fails]
    run_case(case_of(), tmp_path, launches, Options("cpu", {}, say=said.append))
    assert [(each.done, each.total) for each in said] == [(1, 3), (2, 3), (3, 3)]


def test_a_rank_is_told_all(tmp_path: Path) -> None:
    seen = list[dict[str, object]]()

    def start(folder: Path, ranks: int, run: Run, log: Path, timeout_s: float) -> int:
        seen.append(json.loads((folder / "plan.json").read_text()))
        return 1

    sweep = {"model": "tiny", "program": "peer.py", "sequence_length": 64}
    base = tmp_path / "cases"
    base.mkdir()
    (base / "peer.py").touch()
    options = Options("cpu", {}, base, profile=True)
    run_case(case_of(sweep=sweep), tmp_path / "out", start, options)
    assert seen[0]["program"] == str(base / "peer.py")
    assert str(seen[0]["profile"]).startswith(str(tmp_path / "out/profiles"))
    assert (seen[0]["warmup_steps"], seen[0]["steps"]) == (3, 3)


def test_only_some_cells(tmp_path: Path, launches: Launches) -> None:
    run_case(case_of(repeats=1), tmp_path, launches, Options("cpu", {}, only=["zero2*64"]))
    assert [plan["cell"]["stage"] for plan in launches.plans] == [2]
    rows = run(case_of(repeats=1), tmp_path, launches)
    assert [plan["cell"]["stage"] for plan in launches.plans] == [2, 1]
    assert [row["status"] for row in rows] == ["ok", "ok"]
    with pytest.raises(CallError, match="no cell's name is like 'zero9'"):
        run_case(case_of(), tmp_path / "not", launches, Options("cpu", {}, only=["zero9"]))
    assert not (tmp_path / "not").exists()
