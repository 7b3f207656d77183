"""One launch of the real deepspeed launcher per world size; all its cells run in that launch.

Importing torch and deepspeed costs seconds, and a process cannot destroy and re-create its
process group under DeepSpeed, so every cell of a world size shares one set of warm processes. Each
rank writes one JSON line a cell; the tests of `test_cells.py` read them. By hand, with a table:

    python -m tests.distributed.world 2 equivalence.bf16 splits
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


Outcomes = dict[str, list[dict[str, Any]]]


def start(world: int, folder: Path, *words: str, timeout_s: float = 600.0, **variables: str) -> int:
    """`deepspeed --num_gpus WORLD words…` in `folder`, its output in log.txt there; its exit code.

    `variables` are put into the environment of the ranks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(world)),
        *("--master_addr", "127.0.0.1", "--master_port", str(free_port()), *words),
    ]
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DEEPSPEED_TIMEOUT": "5",
        "TORCH_SHOW_CPP_STACKTRACES": "0",
        **variables,
    }
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)  # the launcher ends its ranks
            log.write(f"stopped after {timeout_s:g} s\n")
            return process.wait(60)


def launch(world: int, folder: Path, *patterns: str, timeout_s: float = 780.0) -> Outcomes:
    """Run the cells of `world` processes; outcome of every cell, a list over ranks."""
    start(
        *(world, folder, "--module", "tests.distributed.rank", str(folder), *patterns),
        timeout_s=timeout_s,
    )
    outcomes: Outcomes = {}
    for path in sorted(folder.glob("rank-*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            outcomes.setdefault(row["cell"], []).append(row)
    return outcomes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main(world: int, *patterns: str) -> int:
    """Print a line a cell, and the error of those that failed; 1 if any did."""
    folder = Path(tempfile.mkdtemp(prefix="ds-llama-cells-"))
    failed = False
    for name, rows in launch(world, folder, *patterns).items():
        error = next((row["error"] for row in rows if row["error"]), None)
        failed |= error is not None or len(rows) < world
        print(f"{'FAIL' if error else 'ok  '} {rows[0]['seconds']:6.1f} s  {name}")
        if error:
            print(error)
    print(folder / "log.txt")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), *sys.argv[2:]))
