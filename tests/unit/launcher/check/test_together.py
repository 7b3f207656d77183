"""What becomes of an all-reduce that does not come to its end; the real one is in multinode/."""

from __future__ import annotations

import sys
import time

import pytest

from ds_llama.launcher.check.answers import Heard
from ds_llama.launcher.check.preflight import Report
from ds_llama.launcher.check.reach import srun
from ds_llama.launcher.check.together import add_up
from ds_llama.launcher.hostfile import Host

HOSTS = [Host("a", 2), Host("b", 1)]
ROW = {
    "backend": "gloo",
    "ranks": 3,
    "interfaces": {"a": "eth0", "b": None},
    "import_s": 1,
    "join_s": 0.5,
    "bytes": 4,
    "allreduce_s": 0.001,
    "bus_bytes_per_s": 4e3,
}
READS = "import json, sys, time; hosts = json.load(sys.stdin); mark = sys.argv[1]; "


def started(code: str, limit_s: float = 60.0) -> dict[str, object]:
    return add_up(HOSTS, argv=(sys.executable, "-c", READS + code), limit_s=limit_s)


def test_what_rank_0_measured() -> None:
    code = f"print('hello'); print(mark, json.dumps({ROW})); print(len(hosts))"
    found = started(code)
    assert found["ok"]
    assert {name: found[name] for name in ROW} == ROW


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (
            "print('error: a host is gone\\nwhere: b\\nthe last', file=sys.stderr); sys.exit(1)",
            "a host is gone",
        ),
        ("sys.exit('why\\x1b[2J not')", "why\\x1b[2J not"),
        ("sys.exit(1)", "nothing was printed"),
        ("print(mark, '[]')", "it answers no JSON object"),
        (f"print(mark, json.dumps({dict(ROW, ranks='3')}))", "its answer is not what was asked"),
        (f"print(mark, json.dumps({ROW})); sys.exit('rank 1 is gone')", "rank 1 is gone"),
    ],
)
def test_why_there_is_nothing(code: str, error: str) -> None:
    found = started(code)
    assert not found["ok"]
    assert str(found["error"]).startswith(error)


def test_the_limit_is_kept() -> None:
    began = time.monotonic()
    found = started("time.sleep(600)", 0.5)
    assert found == {"ok": False, "took_s": 0.5, "error": "there is no result within 0.5 s"}
    assert time.monotonic() - began < 60


def test_srun_has_one_task_a_rank() -> None:
    all_ranks = srun().all_ranks
    assert all_ranks is not None
    words = all_ranks(HOSTS, ("python", "-m", "x"))
    tasks = ["--nodes=2", "--ntasks=3", "--ntasks-per-node=2", "--nodelist=a,b"]
    assert words[-7:] == [*tasks, "python", "-m", "x"]


def test_a_report_has_it() -> None:
    report = Report((Heard(HOSTS[0]),), (), 1.0, {"ok": True, **ROW})
    assert report.to_dict()["allreduce"]["ranks"] == 3
