"""A rank that hangs under the real launcher: its name, a non-zero code, and nothing left behind."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.end_to_end.conftest import Workspace

HANGING = """
import os, time
from ds_llama.data.loader import Loader

take = Loader.__next__

def late(self):
    if self.step == 3 and os.environ["RANK"] == "1":
        time.sleep(600)
    return take(self)

Loader.__next__ = late
if __name__ == "__main__":
    from ds_llama.__main__ import entry
    entry()
"""
TOP = """
import sys
from ds_llama.launcher.run import launch
sys.exit(launch(sys.argv[1:], nproc=2, module="hanging"))
"""


def test_a_rank_that_hangs_is_named(workspace: Workspace) -> None:
    (workspace.folder / "hanging.py").write_text(HANGING)
    run = workspace.write_run("hangs", stability={"hang_timeout_s": 4.0})
    result = subprocess.run(
        [sys.executable, "-c", TOP, "train", run],
        cwd=workspace.folder,
        env=workspace.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 1, result.stderr[-3000:]
    said = re.findall("^error: .*", result.stderr, re.M)
    assert said == ["error: rank 1 hangs: no progress for 4 s in step 4, data; rank 0 waits"]
    _, stack = result.stderr.split("rank 1 hangs here:\n")
    assert "hanging.py" in stack.split("error: ")[0]
    assert "Traceback" not in result.stderr
    assert [row["step"] for row in workspace.rows("hangs")] == [1, 2, 3]
    event = json.loads((workspace.folder / "runs/hangs/events.jsonl").read_text())
    assert (event["event"], event["step"]) == ("hang", 4)
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if run in _words(path)]
    assert left == []


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").split("\0")
    except OSError:
        return []
