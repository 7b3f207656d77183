"""The codes of `ds-llama lint` as the source has them, by AST."""

from __future__ import annotations

import ast
from pathlib import Path

from ds_llama import config

ROOM = Path(config.__file__).parent
# Written as a variable where the Problem is made.
ELSEWHERE = {"wrong-type", "wrong-value", "two-optimizers", "two-schedulers", "invalid"}


def codes_of(path: Path) -> set[str]:
    """What a file gives as the code of a Problem, or of a helper that makes one."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    first = [
        node.args[0]
        for node in calls
        if node.args and getattr(node.func, "id", "") in ("Problem", "_idle")
    ]
    return {
        node.value for node in first if isinstance(node, ast.Constant) and type(node.value) is str
    }


def all_codes() -> set[str]:
    return set().union(ELSEWHERE, *(codes_of(path) for path in ROOM.rglob("*.py")))
