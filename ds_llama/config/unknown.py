"""What to say of a key that the schema does not have."""

from __future__ import annotations

import re
from functools import cache
from importlib import metadata

from ds_llama.config import keys_training as training
from ds_llama.config.keys import Section, current
from ds_llama.config.problems import Problem, did_you_mean, nearest
from ds_llama.config.removed import REMOVED

VERSION = "0.19.8"
"""The release of DeepSpeed that the schema was read from."""

# A name that stands in more sections than this says nothing about where it was meant to be.
_FEW = 2
# More names than that are not listed in a message.
_MANY = 20


def unknown_key(root: Section, section: Section, name: str, key: str) -> Problem:
    """`name` stands at `key`, in a section of `root` that has no such key."""
    if key in REMOVED:
        return Problem("removed-key", "error", key, *REMOVED[key])
    if key == "optimizer.params.max_grad_norm":
        message = "DeepSpeed stops at max_grad_norm among the optimizer's params"
        return Problem("removed-key", "error", key, message, 'write "gradient_clipping"')
    if section is training.OPTIMIZER or section is training.SCHEDULER:
        message = f"{name!r} stands beside 'params', where DeepSpeed does not read it"
        return Problem("beside-params", "error", key, message, "move it into 'params'")
    known = [known for known, entry in section.keys.items() if current(entry)]
    if section is root and name.startswith(("_", "//", "#")) and not nearest(name, known, 0.85):
        message = f"{name!r} is taken for a comment, which DeepSpeed lets pass at the top level"
        return Problem("comment-key", "warning", key, message, "keep comments in another file")
    homes = [home for home in root.homes.get(name, []) if _on_one_line(home, key)]
    if 0 < len(homes) <= _FEW:
        message = f"{name!r} does nothing here, where DeepSpeed does not read it"
        places = " or ".join(f"into {path!r}" if path else "to the top level" for path in homes)
        return Problem("misplaced-key", "error", key, message, f"move it {places}")
    remedy, installed = did_you_mean(name, known), newer_release()
    if not nearest(name, known) and len(known) > _MANY:
        remedy = "remove it; `ds-llama lint --schema` lists what DeepSpeed knows"
    if installed is not None:
        message = f"unknown key {name!r}: ds_llama knows DeepSpeed {VERSION}, this is {installed}"
        return Problem("newer-key", "warning", key, message, remedy)
    return Problem("unknown-key", "error", key, f"unknown key {name!r}", remedy)


@cache
def newer_release() -> str | None:
    """The installed DeepSpeed, where it is newer than the one that the schema was read from."""
    try:
        installed = metadata.version("deepspeed")
    except metadata.PackageNotFoundError:
        return None
    return installed if _numbers(installed) > _numbers(VERSION) else None


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3]]


def _on_one_line(home: str, key: str) -> bool:
    """Whether `home` lies around the section that `key` stands in, or inside it: what another
    tool or another precision has under the same name is another thing."""
    section = key.split(".")[:-1]
    return all(a == b for a, b in zip(section, home.split(".") if home else [], strict=False))
