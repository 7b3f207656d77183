"""How a prepare ends as a process: killed, stopped by Ctrl-C, and gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from ds_llama.data.prepare import share_done
from tests.campaigns.prepare_kills import GONE_S, Call, contents, kill, outlived, write_corpus

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills") / "corpus"
    write_corpus(folder, 0.25)
    return folder


def words(corpus: Path, tokenizer_folder: Path, out: Path, workers: int) -> list[str]:
    call = [str(corpus), "--tokenizer", str(tokenizer_folder), "--deduplicate", "--out", str(out)]
    return [*call, "--workers", str(workers)]


def started(call: Call) -> subprocess.Popen[str]:
    """A prepare that stands still after some batches."""
    process = call.start()
    assert process.stdout is not None
    assert process.stdout.readline() == "paused\n"
    return process


def test_killed_twice_and_stopped_once(
    corpus: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    _, said = Call(words(corpus, tokenizer_folder, whole, 1)).start().communicate()
    assert "bad records (" in said
    shares = []
    for workers, batches in ((2, 3), (1, 2)):
        call = words(corpus, tokenizer_folder, out, workers)
        process = started(Call(call, characters=16_000, paused=batches))
        assert kill(process) == []
        assert contents(out) == {}
        shares.append(share_done(out) or 0)
    process = started(Call(words(corpus, tokenizer_folder, out, 2), characters=16_000, paused=2))
    workers = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=GONE_S)
    assert process.returncode == 130
    shares.append(share_done(out) or 0)
    assert 0 < shares[0] < shares[1] < shares[2] < 1
    # A slow machine tells of its progress in between.
    assert said.startswith(f"going on at {100 * shares[1]:.0f} %\n")
    assert said.endswith(f"stopped at {100 * shares[2]:.0f} %; the same call goes on there\n")
    assert "Error" not in said
    assert outlived(workers) == []
    process = Call(words(corpus, tokenizer_folder, out, 1), characters=20_000).start()
    _, said = process.communicate()
    assert process.returncode == 0
    assert said.startswith(f"going on at {100 * shares[2]:.0f} %\n")
    assert "bad records (" in said
    assert contents(out) == contents(whole)
    assert not (out / ".preparing").exists()
