"""Imports point to strictly lower levels: the table of the architecture, held by AST."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "ds_llama"

LEVELS = {
    0: ["errors", "units"],
    1: ["config"],
    2: ["planner", "model", "measure"],
    3: ["zero", "data"],
    4: ["simulator", "weights", "tracking", "commit"],
    5: ["checkpoint", "evals"],
    6: ["trainer", "selftest"],
    7: ["bench", "launcher"],
    8: ["cli"],
    9: ["__main__"],
}
LEVEL = {room: level for level, rooms in LEVELS.items() for room in rooms}
# Rooms below that a room may import, where that is fewer than all of them.
ONLY = {"launcher": {"errors", "units", "config", "planner", "commit"}}
# Whole rooms without these, inside functions too; and third parties that a room is limited to.
HEAVY = {"torch", "deepspeed", "transformers"}
NEVER_HEAVY = {"errors", "units", "config", "planner", "commit"}
NOT_AT_IMPORT = {"launcher", "cli"}
THIRD_PARTIES = {"errors": set(), "units": set(), "commit": set(), "model": {"torch"}}
# Nobody's import may wait for these: where a picture is drawn, in a function.
DRAWS, LAZY = {"simulator", "bench"}, {"matplotlib"}
# Reads the classes of Hugging Face's LLaMA when a model of theirs is registered, in a function.
ALSO = {"model/traits.py": {"transformers"}}
# Stubs of rooms that hold data only.
DATA_FOLDERS = {"_docs", "_ds_configs", "_launch"}


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST, path: Path) -> Iterator[str]:
    """Every imported module's full name; `from ds_llama import x` gives `ds_llama.x`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = ["ds_llama", *path.relative_to(PACKAGE).parent.parts]
                kept = package[: len(package) - node.level + 1]
                base = ".".join([*kept, *filter(None, [base])])
            names = (alias.name for alias in node.names)
            yield from (f"{base}.{name}" for name in names) if base == "ds_llama" else [base]


def problems_of(path: Path, source: str) -> list[str]:
    """What in `source`, were it at `path`, is against the table."""
    room, found = room_of(path), []
    if path == PACKAGE / "__init__.py":
        return []
    if room not in LEVEL:
        return [f"{room} has no level"]
    for name in imports(ast.parse(source), path):
        top, _, rest = name.partition(".")
        if top == "ds_llama":
            found += _inside(room, rest.split(".")[0])
        elif _is_foreign(room, top) and top not in ALSO.get(str(path.relative_to(PACKAGE)), ()):
            found.append(f"{room} may not import {top}")
    found += [f"{room} may not import {top} at import" for top in _at_import(source) & LAZY]
    if room in NOT_AT_IMPORT or room == "model":
        heavy = HEAVY if room in NOT_AT_IMPORT else {"transformers"}
        found += [f"{room} may not import {top} at import" for top in _at_import(source) & heavy]
    return found


def _is_foreign(room: str, top: str) -> bool:
    if (room in NEVER_HEAVY and top in HEAVY) or (top in LAZY and room not in DRAWS):
        return True
    allowed = THIRD_PARTIES.get(room)
    return allowed is not None and top not in sys.stdlib_module_names | allowed


def _inside(room: str, target: str) -> list[str]:
    if target in (room, "__version__") or {room, target} == {"errors", "units"}:
        return []  # level 0 is one room of two files
    if target not in LEVEL:
        return [f"{room} imports {target!r} from the public face"]
    if LEVEL[target] >= LEVEL[room] or target not in ONLY.get(room, {target}):
        return [f"{room} (level {LEVEL[room]}) imports {target} (level {LEVEL[target]})"]
    return []


def _at_import(source: str) -> set[str]:
    """Top names that are imported when the module is: not in functions, not for type checkers."""
    tree = ast.parse(source)
    found: set[str] = set()
    nodes: list[ast.AST] = list(tree.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            nodes += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            nodes += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_import_points_down(path: Path) -> None:
    assert problems_of(path, path.read_text()) == []


def test_every_room_has_a_level() -> None:
    rooms = {
        p.name.removesuffix(".py") for p in PACKAGE.iterdir() if p.suffix == ".py" or p.is_dir()
    }
    rooms -= {"__init__", "__pycache__", "py.typed", *DATA_FOLDERS}
    assert rooms <= set(LEVEL)


@pytest.mark.parametrize(
    ("file", "source", "problem"),
    [
        ("config/x.py", "import torch", "config may not import torch"),
        ("commit/x.py", "def f():\n    from torch import nn", "commit may not import torch"),
        ("commit/x.py", "import numpy", "commit may not import numpy"),
        ("model/x.py", "import deepspeed", "model may not import deepspeed"),
        ("model/traits.py", "import transformers", "model may not import transformers at import"),
        ("model/x.py", "from ds_llama.zero import y", "model (level 2) imports zero (level 3)"),
        ("data/x.py", "import ds_llama.weights.y", "data (level 3) imports weights (level 4)"),
        ("zero/x.py", "from ds_llama import trainer", "zero (level 3) imports trainer (level 6)"),
        ("zero/x.py", "from ..cli import main", "zero (level 3) imports cli (level 8)"),
        ("cli/x.py", "import torch", "cli may not import torch at import"),
        ("cli/x.py", "from ds_llama import Llama", "cli imports 'Llama' from the public face"),
        (
            "launcher/x.py",
            "from ds_llama.zero import y",
            "launcher (level 7) imports zero (level 3)",
        ),
        ("new_room/x.py", "", "new_room has no level"),
        ("measure/x.py", "def f():\n    import matplotlib", "measure may not import matplotlib"),
        ("simulator/x.py", "import matplotlib", "simulator may not import matplotlib at import"),
    ],
)
def test_the_check_sees_what_is_wrong(file: str, source: str, problem: str) -> None:
    assert problems_of(PACKAGE / file, source) == [problem]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("cli/x.py", "def command():\n    import torch"),
        ("cli/x.py", "if TYPE_CHECKING:\n    import torch"),
        ("zero/x.py", "from ds_llama.model import y\nfrom . import z\nimport deepspeed"),
        ("__init__.py", "from ds_llama.cli import main"),
    ],
)
def test_the_check_lets_pass_what_is_right(file: str, source: str) -> None:
    assert problems_of(PACKAGE / file, source) == []


def test_light_rooms_load_nothing_heavy() -> None:
    """What AST cannot see: a light room that loads torch through a third party."""
    light = [p for p in files() if room_of(p) in NEVER_HEAVY | NOT_AT_IMPORT]
    names = [".".join(["ds_llama", *p.relative_to(PACKAGE).with_suffix("").parts]) for p in light]
    names = [name.removesuffix(".__init__") for name in names]
    code = (
        f"import importlib, sys; [importlib.import_module(n) for n in {names}]; "
        f"print(sorted({HEAVY} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
