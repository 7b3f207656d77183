"""What signals do to a process that has a child in a session of its own."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

# Says which signal its child was to be told of.
TOP = """
import os, signal, sys
from ds_llama.launcher.session import Session
def ask(child, signum):
    print("told of", signum, flush=True)
code = "import sys, time; print('up', flush=True); time.sleep(3600)"
session = Session([sys.executable, "-c", code], os.environ, ask, float(sys.argv[1]))
signal.signal(signal.SIGHUP, HANGUP)
print("ended by", session.run(), "first", session.signum, flush=True)
"""

USR1, TERM, INT, HUP = (
    int(each) for each in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
)


def play(*signums: int, told: list[int], patience_s: float = 3600.0) -> str:
    """Send one after the other, each when the one before has been `told`; the last words."""
    words = [sys.executable, "-c", TOP.replace("HANGUP", "signal.SIG_DFL"), str(patience_s)]
    left = list(told)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as top:
        assert top.stdout is not None
        assert top.stdout.readline() == "up\n"
        for signum in signums:
            top.send_signal(signum)
            if left and left[0] == signum:
                assert top.stdout.readline() == f"told of {left.pop(0)}\n"
        said = top.stdout.readline()
    assert left == []
    return said.strip()


@pytest.mark.parametrize("signum", [INT, TERM, HUP])
def test_the_second_signal_ends_all_at_once(signum: int) -> None:
    assert play(signum, TERM, told=[signum]) == f"ended by -9 first {signum}"


def test_after_an_announcement_a_signal_is_a_first_one() -> None:
    """And announcing it twice is not one."""
    said = play(USR1, USR1, TERM, TERM, told=[USR1, TERM])
    assert said == f"ended by -9 first {USR1}"


def test_patience_ends() -> None:
    assert play(TERM, told=[TERM], patience_s=0.2) == f"ended by -9 first {TERM}"


def test_nohup_stays() -> None:
    """A terminal that closes ends nothing then."""
    top = TOP.replace("HANGUP", "signal.SIG_IGN")
    words = [sys.executable, "-c", top, "3600"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == f"told of {TERM}\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == f"ended by -9 first {TERM}\n"
