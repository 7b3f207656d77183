"""All ranks of all hosts add up once, started as a training is, within a time that is kept.

In a process of its own, `python -m ds_llama.launcher.check.together`: what goes wrong there ends
with it, and the agents end their ranks when it is gone.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ds_llama.launcher.check import answers
from ds_llama.launcher.check.allreduce import LOGS
from ds_llama.launcher.hostfile import Host
from ds_llama.launcher.processes import kill_session

MODULE = "ds_llama.launcher.check.allreduce"
RUNNER = (sys.executable, "-m", "ds_llama.launcher.check.together")


def add_up(
    hosts: Sequence[Host], *, argv: Sequence[str] = RUNNER, limit_s: float
) -> dict[str, Any]:
    """What rank 0 measured, with `ok` and `took_s`; `error` says why there is nothing.

    argv: what starts all ranks with the mark as its last argument, and reads the hosts as JSON.
    """
    mark = f"ds-llama-{secrets.token_hex(8)}"
    began = time.monotonic()
    with subprocess.Popen(
        [*argv, mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            said = json.dumps([asdict(host) for host in hosts])
            out, err = process.communicate(said, limit_s)
        except subprocess.TimeoutExpired:
            error = f"there is no result within {limit_s:g} s"
            return {"ok": False, "took_s": limit_s, "error": error}
        finally:
            kill_session(process.pid)
    took_s = round(time.monotonic() - began, 3)
    rows = [line.removeprefix(mark) for line in out.splitlines() if line.startswith(mark)]
    error = _reason(err or out)
    if process.returncode == 0 and rows:
        try:
            found = answers.parse(answers.Sum, answers.read(rows[0].encode()))
        except answers.BadAnswer as bad:
            error = str(bad)
        else:
            return {"ok": True, "took_s": took_s, **found.model_dump()}
    return {"ok": False, "took_s": took_s, "error": error}


def _reason(text: str) -> str:
    """The first error that somebody reported, else the last line."""
    lines = [answers.printable(line.strip()) for line in text.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines[-1:] or ["nothing was printed"])[0][:300]


def _main(mark: str) -> int:
    from ds_llama.launcher import envfile
    from ds_llama.launcher.job import Job
    from ds_llama.launcher.supervisor import Supervisor

    hosts = [Host(**{**row, "devices": tuple(row["devices"])}) for row in json.load(sys.stdin)]
    logs = Path(tempfile.gettempdir(), f"{LOGS}{mark[-16:]}")
    env = envfile.environment(os.environ)
    job = Job(tuple(hosts), MODULE, (mark,), logs=str(logs), env=env)
    return Supervisor(job, "ssh").run().code


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
