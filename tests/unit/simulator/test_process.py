"""The simulator's process: nothing is left behind, nothing is patched outside its place."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import ds_llama.simulator
from ds_llama.config import load_run
from ds_llama.errors import RunError
from ds_llama.simulator import Request, Simulator

ROOM = Path(ds_llama.simulator.__file__).parent
RUN = {
    "model": {"preset": "debug"},
    "data": {"train": "nowhere"},
    "train": {"steps": 1, "micro_batch_size": 1},
}
# Starts a simulator, says its pid, and waits for an answer that takes long.
PARENT = f"""
from ds_llama.config import load_run
from ds_llama.simulator import Request, Simulator
with Simulator() as simulator:
    print(simulator._process.pid, flush=True)
    simulator.outcomes([Request(load_run({RUN!r}), 8, steps=100_000)])
"""


def children_of(pid: int) -> list[psutil.Process]:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        found = psutil.Process(pid).children()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("no simulation was forked")


def test_nothing_outlives_who_asked() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert parent.stdout is not None
    server = psutil.Process(int(parent.stdout.readline()))
    below = [server, *children_of(server.pid)]
    parent.kill()
    parent.wait(30)
    parent.stdout.close()
    _, alive = psutil.wait_procs(below, timeout=30)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_an_interrupt_ends_it() -> None:
    with pytest.raises(KeyboardInterrupt), Simulator() as simulator:
        raise KeyboardInterrupt
    assert simulator._process.returncode == -signal.SIGKILL


def test_a_simulator_that_dies_is_said() -> None:
    with Simulator() as simulator:
        os.killpg(simulator._process.pid, signal.SIGKILL)
        with pytest.raises(RunError, match="the simulator's process ended with code -9"):
            simulator.outcomes([Request(load_run(RUN), 8)])


def assigned_foreign(source: str) -> list[str]:
    """Assignments into what is imported from torch, deepspeed or this package, by their text."""
    tree, foreign, found = ast.parse(source), set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            for alias in node.names:
                top = (module or alias.name).split(".")[0]
                if top in ("torch", "deepspeed", "ds_llama", "cpuinfo"):
                    foreign.add((alias.asname or alias.name).split(".")[0])
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("setattr", "delattr"):
            targets = [node.args[0]]
            found += [ast.unparse(node)] if root(node.args[0]) in foreign else []
            continue
        for target in targets:
            if isinstance(target, ast.Attribute | ast.Subscript) and root(target) in foreign:
                found.append(ast.unparse(target))
    return found


def root(node: ast.AST) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("path", sorted(ROOM.glob("*.py")), ids=lambda path: path.name)
def test_patches_are_in_one_place(path: Path) -> None:
    found = assigned_foreign(path.read_text())
    assert bool(found) == (path.name == "patches.py"), found


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.tensor = None",
        "import torch.nn as nn\nnn.Module._apply = None",
        "from deepspeed.runtime.zero import stage3\nsetattr(stage3, 'x', 1)",
        "from torch import ops\nops.table['x'] = 1",
    ],
)
def test_the_check_sees_a_patch(source: str) -> None:
    assert assigned_foreign(source)


def test_every_patch_says_why() -> None:
    tree = ast.parse((ROOM / "patches.py").read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    calls = [node for node in ast.walk(functions["apply"]) if isinstance(node, ast.Call)]
    called = {node.func.id for node in calls if isinstance(node.func, ast.Name)} & functions.keys()
    assert len(called) > 5
    assert [name for name in called if not ast.get_docstring(functions[name])] == []
