"""Of several failures the one that the others follow from, and the lines that are printed."""

from __future__ import annotations

from pathlib import Path

from ds_llama.launcher.failure import Failure, cause, of_rank, read_tail, report

LOG = "/runs/x/logs/a/2_rank0.log"
ECHO = Failure("node0", "rank 0 on node0 ended with exit code 1", 1, 0, tail="closed by peer")
KILLED = of_rank("node1", 3, 137, place="step 7, forward", log="")
GONE = Failure("node1", "node1 closed the connection", remedy="see whether it is up")
HANG = """step 3
error: rank 3 hangs: no progress for 20 s in step 7, forward; ranks 0, 1, 2 wait
where: step 7, rank 3 on node1, process 77
remedy: see the stack above
"""


def test_an_echo_is_not_the_cause() -> None:
    assert cause([ECHO, KILLED]) is KILLED
    assert cause([ECHO, GONE]) is GONE
    assert cause([ECHO]) is ECHO
    assert cause([KILLED, GONE]) is KILLED  # the first


def test_a_rank_that_said_nothing() -> None:
    lines = report([ECHO, KILLED], 1.25).splitlines()
    assert lines == [
        "error: rank 3 on node1 was ended by signal 9 (SIGKILL), step 7, forward",
        "where: node1",
        "remedy: see the end of `dmesg` on node1: the kernel kills what takes too much memory",
        "the run failed: node1, rank 3, step 7, forward, exit code 137; "
        "all else was stopped after 1.2 s",
    ]


def test_a_rank_that_said_why_is_quoted_once(tmp_path: Path) -> None:
    log = tmp_path / "1_rank1.log"
    log.write_text("step 1\nerror: no such file\nwhere: data.train\nremedy: make it\n")
    text = report([of_rank("node1", 1, 2, log=str(log))], 0.5)
    assert text.count("error: no such file") == 1
    assert text.startswith("the last lines of rank 1 on node1:\n  step 1\n  error: no such file")
    assert text.endswith(
        f"node1, rank 1, exit code 2, log node1:{log}; all else was stopped after 0.5 s"
    )


def test_rank_0_is_not_shown_again() -> None:
    error = "error: no such file\nwhere: data.train\nremedy: make it"
    text = report([Failure("node0", "rank 0 ended", 2, 0, log=LOG, tail=f"a\n{error}\n")], 0.5)
    assert text.startswith("the run failed: node0, rank 0, exit code 2, log node0:/runs")


def test_who_hangs_is_named_and_not_who_said_so() -> None:
    text = report([Failure("node0", "rank 0 ended", 1, 0, log=LOG, tail=HANG)], 0.5)
    assert text.splitlines()[-1] == (
        "the run failed: node1, rank 3, step 7, forward, exit code 1, "
        "log node1:/runs/x/logs/a/*_rank3.log; all else was stopped after 0.5 s"
    )


def test_a_rank_that_left_without_a_word_borrows_another_ones() -> None:
    silent = Failure("node1", "rank 1 on node1 ended with exit code 2", 2, 1, remedy="see its log")
    error = "error: no such file\nwhere: data.train\nremedy: make it"
    spoke = Failure("node2", "rank 2 on node2 ended", 2, 2, tail=error)
    assert error in report([silent, spoke], 0.5)


def test_what_a_host_refuses() -> None:
    refused = Failure("node1", "cpu_adam did not compile", where="/x/log", remedy="see there")
    assert report([refused], 0.1).splitlines() == [
        "error: cpu_adam did not compile",
        "where: node1:/x/log",
        "remedy: see there",
        "the run failed: node1, exit code 1; all else was stopped after 0.1 s",
    ]


def test_0_is_no_success_of_a_rank_that_did_not_finish() -> None:
    left = of_rank("node1", 3, 0)
    assert (left.what, left.code) == ("rank 3 on node1 left without having finished", 1)


def test_a_log_that_is_long_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a" * 100_000 + "end")
    assert read_tail(str(tmp_path / "log")).endswith("end")
    assert len(read_tail(str(tmp_path / "log"))) == 1 << 15
    assert read_tail(str(tmp_path / "none")) == ""
