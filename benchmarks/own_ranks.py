"""A script of this folder that launches itself again, as each of several ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def rows_of_ranks(script: str, folder: Path, world: int) -> list[dict[str, Any]]:
    """The JSON lines that the ranks print; they get this call's arguments, and `--rank FOLDER`.

    Ends the program with the end of their log when they fail.
    """
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    words = [script, "--rank", str(folder), *sys.argv[1:]]
    root = str(Path(__file__).parents[1])
    environment = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    log = folder / "log.txt"
    with log.open("w") as errors:
        done = subprocess.run(
            [sys.executable, "-m", *launcher, *words],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    if done.returncode:
        raise SystemExit(log.read_text()[-3000:])
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
