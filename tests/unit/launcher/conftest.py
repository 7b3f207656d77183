from __future__ import annotations

import os
from pathlib import Path

import pytest

RANK = """
import json, os, signal, sys, time
from pathlib import Path
from ds_llama.launcher.marks import report_finished
from ds_llama.launcher.orphan import die_with_parent

die_with_parent()
rank, out = os.environ["RANK"], Path(os.environ["RANK_OUT"])
facts = {"argv": sys.argv[1:], "pid": os.getpid(), "parent": os.getppid(), "env": dict(os.environ)}
do = os.environ.get(f"RANK_{rank}", "finish").split()
if do[0] == "once" and sys.argv[-1] == "again":
    do = ["finish"]
if do[0] == "save":
    def save(signum, frame):
        (out / f"saved-{rank}").write_text(str(signum))
        sys.exit(128 + signum)
    signal.signal(signal.SIGUSR1, save)
    signal.signal(signal.SIGTERM, save)
print(f"rank {rank} is up", flush=True)
(out / f"{rank}.part").write_text(json.dumps(facts))
(out / f"{rank}.part").rename(out / f"{rank}.json")
if do[0] == "finish":
    report_finished()
while not (out / "0.json").exists():
    time.sleep(0.01)
if do[0] in ("exit", "once"):
    sys.exit(int(do[1]))
elif do[0] == "signal":
    os.kill(os.getpid(), int(do[1]))
elif do[0] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if do[0] in ("deaf", "sleep", "save"):
    time.sleep(3600)
"""

TOP = """
import sys
from ds_llama.errors import DsLlamaError
from ds_llama.launcher.run import launch
try:
    sys.exit(launch(sys.argv[1:], nproc=2, module="one_rank"))
except DsLlamaError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the module `one_rank`, which writes RANK.json there and does as RANK_<n> says,
    and `top.py`, which launches two of it."""
    (tmp_path / "one_rank.py").write_text(RANK)
    (tmp_path / "top.py").write_text(TOP)
    path = filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.setenv("RANK_OUT", str(tmp_path))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.delenv("DS_LLAMA_SUPERVISOR", raising=False)
    return tmp_path
