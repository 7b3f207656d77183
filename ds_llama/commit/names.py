"""Names in a `checkpoints` folder, and the identity of the run that it belongs to.

    checkpoints/
      step-00000100/                        sealed
      latest                                the newest sealed one's name
      .run-id                               which run this folder is of
      .staging-step-00000200/step-00000200/ being written
      .replaced-step-00000100/              the former content while a step is sealed anew
      .removing-step-00000050/              being deleted
      damaged-step-00000150/                found damaged by a resume, which took the one before it

Only names that begin with "step-" are checkpoints. The staged folder bears its final name inside a
folder of its own, since DeepSpeed writes to `save_dir/tag` and leaves other files in `save_dir`.
"""

from __future__ import annotations

import re
import uuid
from pathlib import Path

from ds_llama.commit import disk

LATEST = "latest"
RUN_ID = ".run-id"
STAGING, REPLACED, REMOVING = ".staging-", ".replaced-", ".removing-"
DAMAGED = "damaged-"
_STEP = re.compile(r"step-(\d{8,})")


def step_name(step: int) -> str:
    """Folder name of a step: "step-00000100"."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a folder name, None for any other name."""
    match = _STEP.fullmatch(name)
    return int(match[1]) if match else None


def is_unfinished(name: str) -> bool:
    """Whether this is the name of a folder that only a kill leaves standing."""
    marks = (STAGING, REPLACED, REMOVING)
    return any(name.startswith(m) and step_of(name.removeprefix(m)) is not None for m in marks)


def staging(root: Path, name: str) -> Path:
    """Where checkpoint `name` is written before it is sealed."""
    return root / f"{STAGING}{name}" / name


def run_id(root: Path) -> str | None:
    """Identity of the run that a checkpoints folder belongs to; None where nothing says it."""
    try:
        return (root / RUN_ID).read_text().strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def ensure_run_id(root: Path, former: str | None = None) -> str:
    """`run_id`; a folder that has none gets `former`, else one that is made up now."""
    known = run_id(root)
    if known is None:
        known = former or uuid.uuid4().hex
        disk.replace(root / RUN_ID, f"{known}\n".encode())
    return known
