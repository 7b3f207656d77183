"""Keys and tokens do not belong into a file that is copied into every run's folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ds_llama.config.problems import Problem
from ds_llama.config.rules import Context

_NAMES = re.compile(r"(api_?key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)
_VALUES = re.compile(
    r"\b(hf_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16}"
    r"|wandb_v\d_\w{20,}|github_pat_\w{30,}|xox[abprs]-[\w-]{10,}|AIza[\w-]{35})"
    r"|^[0-9a-f]{40}$|\w://[^/\s:@]*:[^/\s:@]+@"
)
# 40 hexadecimal digits are a key of Weights & Biases, or what git calls a commit.
_COMMITS = re.compile(r"(commit|hash|sha1?|revision|rev)$", re.IGNORECASE)


def secrets(context: Context) -> Iterator[Problem]:
    """In all that was given: also where nothing else reads it."""
    for key, value in _strings(context.given or context.deepspeed, ""):
        name = key.rsplit(".", 1)[-1]
        if value and (_NAMES.search(name) or (_VALUES.search(value) and not _COMMITS.search(name))):
            yield Problem(
                "secret",
                "error",
                key,
                f"{key} looks like a secret, and this file is copied into every run's folder",
                "put it into the tool's own environment variable or login",
            )


def _strings(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _strings(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _strings(inner, f"{path}.{index}")
    elif isinstance(value, str):
        yield path, value
