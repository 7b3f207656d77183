"""OUTPUT/events.jsonl: what happened to a run that is no step of it, one JSON object an event.

    {"event": "skip", "step": 7, "why": "the loss is nan", "samples": [48, 56], "time": "…"}

event: skip, stop, rollback or hang. samples: the first, and the first after those that were left
out. Events are only ever added, also by a resume that makes steps again.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ds_llama.tracking.guard import announce

NAME = "events.jsonl"


def record(output: Path, event: str, step: int, why: str, **more: Any) -> None:
    """Append an event, and say it on the console; to be called on one rank."""
    append(output, event, step, why, **more)
    shown = ", ".join(f"{key} {value}" for key, value in more.items())
    announce(f"{event} at step {step}: {why}" + (f" ({shown})" if shown else ""))


def append(output: Path, event: str, step: int, why: str, **more: Any) -> None:
    """Append an event that something else tells of. A disk that refuses it ends no run."""
    when = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    row = {"event": event, "step": step, "why": why, **more, "time": when}
    with suppress(OSError), (output / NAME).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
