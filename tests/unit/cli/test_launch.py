"""`ds-llama launch check`: calls that mean nothing, and what is shown of what was found."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from ds_llama.cli.launch_table import show, summary
from ds_llama.cli.main import main
from ds_llama.launcher.check.answers import Heard
from ds_llama.launcher.check.preflight import Report
from ds_llama.launcher.check.problems import Problem, Severity
from ds_llama.launcher.hostfile import Host


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "error: one of --hostfile and --slurm says which hosts"),
        (["--hostfile", "HOSTS", "--slurm"], "error: one of --hostfile and --slurm says which"),
        (["--hostfile", "HOSTS", "--slots", "2"], "error: --slots is for --slurm"),
        (["--hostfile", "none"], "error: the hostfile cannot be read: No such file or directory"),
        (["--slurm"], "error: this is no Slurm allocation: SLURM_JOB_ID is not set"),
        (["--hostfile", "HOSTS", "--include", "x"], "error: "),
        (["--hostfile", "HOSTS", "--master-port", "0"], "error: Invalid value for '--master-port'"),
        (["none.json", "--hostfile", "HOSTS"], "error: cannot be read: no such file or directory"),
    ],
)
def test_calls_that_are_wrong(
    words: list[str],
    what: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    (tmp_path / "hosts").write_text("a slots=1\n")
    words = [str(tmp_path / "hosts") if word == "HOSTS" else word for word in words]
    assert main(["launch", "check", *words, "--json"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(what)


def test_a_wrong_hostfile_is_wrong_content(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hosts").write_text("-oProxyCommand=id slots=1\n")
    assert main(["launch", "check", "--hostfile", str(tmp_path / "hosts")]) == 1
    assert "where: " in capsys.readouterr().err


def report(*problems: tuple[str, Severity, str]) -> Report:
    found = tuple(
        Problem(code, severity, host, f"what is wrong: {code}", f"what to do: {code}")
        for code, severity, host in problems
    )
    return Report((Heard(Host("a", 1)), Heard(Host("b", 1))), found, 1.23)


def test_nothing_is_wrong() -> None:
    file = io.StringIO()
    show(report(), file)
    assert file.getvalue() == "2 hosts in 1.2 s: nothing is wrong\n"
    assert report().ok


@pytest.mark.parametrize("columns", ["30", "60", "200"])
def test_every_problem_is_shown_with_its_remedy(
    columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    found = report(("port", "error", "a"), ("cores", "warning", "a"), ("cores", "warning", "b"))
    assert not found.ok
    file = io.StringIO()
    show(found, file)
    text = " ".join(file.getvalue().split())
    assert text.count("to do: cores") == 1  # once for both hosts
    assert "a, b" in text
    assert text.index("port") < text.index("cores")
    assert text.endswith("2 hosts in 1.2 s: 1 error, 2 warnings")
    assert summary(found) == "2 hosts in 1.2 s: 1 error, 2 warnings"
    widths = [len(line.rstrip()) for line in file.getvalue().splitlines()]
    assert max(widths[:-1]) <= int(columns)


def test_warnings_alone_stop_nothing() -> None:
    assert report(("cores", "warning", "a"), ("no-op", "note", "b")).ok


def test_what_the_ranks_measured_is_a_line() -> None:
    measured = {
        **{"ok": True, "took_s": 7.2, "backend": "gloo", "ranks": 2, "bytes": 4 * 2**20},
        **{"interfaces": {"a": "eth0", "b": "eth1"}, "allreduce_s": 0.0042},
        "bus_bytes_per_s": 1e9,
    }
    file = io.StringIO()
    show(replace(report(), allreduce=measured), file)
    words = "all-reduce of 2 ranks (gloo over eth0, eth1): 4 MiB in 4.2 ms, 1 GB/s; "
    assert file.getvalue().splitlines()[1] == words + "7.2 s with the start"
