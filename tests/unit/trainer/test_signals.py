"""Signals while a run goes on, in real processes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import sys, time
from ds_llama.trainer.signals import StopRequest
with StopRequest(deadline_s=float(sys.argv[1])) as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    if sys.argv[2] == "slow":
        time.sleep(20)
print("stopped by", stop.signum, flush=True)
"""


def run(deadline_s: float, mode: str, *signals: int) -> tuple[int, str, str, float]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(deadline_s), mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    start = time.monotonic()
    for signum in signals:
        process.send_signal(signum)
        time.sleep(0.3)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err, time.monotonic() - start


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_a_request(signum: int) -> None:
    code, out, err, _ = run(10, "prompt", signum)
    assert (code, out, err) == (0, f"stopped by {int(signum)}\n", "")


def test_a_save_that_takes_too_long_gives_way_to_the_last_checkpoint() -> None:
    code, out, err, seconds = run(1, "slow", signal.SIGTERM)
    assert (code, out) == (128 + signal.SIGTERM, "")
    assert "not saved within 1 s of the signal; the last complete checkpoint stands" in err
    assert seconds < 5


def test_a_schedulers_announcement_leaves_time_until_the_end_itself() -> None:
    code, _, err, seconds = run(1, "slow", *[signal.SIGUSR1] * 5, signal.SIGTERM)
    assert code == 128 + signal.SIGUSR1
    assert "not saved within 1 s of the signal" in err
    assert 2.5 < seconds < 8


def test_a_second_ctrl_c_ends_at_once() -> None:
    code, _, _, seconds = run(10, "slow", signal.SIGINT, signal.SIGINT)
    assert code == 128 + signal.SIGINT
    assert seconds < 5
