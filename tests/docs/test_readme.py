"""The README is true: its table, its JSON, its links, its names, its commands."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

import ds_llama as dl
from ds_llama.cli import commands
from ds_llama.config.resolve import resolve
from tests.strategies import REFUSED

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)


def blocks(language: str) -> list[str]:
    found = [text for kind, text in BLOCKS if kind == language]
    assert found
    return found


def test_first_table_is_the_papers_arithmetic() -> None:
    parameters = dl.preset("llama-7b").num_parameters
    assert f"({parameters:,} parameters" in README
    bytes_of = {
        "plain data parallel": lambda n: 16,
        "`zero1`": lambda n: 4 + 12 / n,
        "`zero2`": lambda n: 2 + 14 / n,
        "`zero3`": lambda n: 16 / n,
    }
    for name, per_parameter in bytes_of.items():
        row = next(line for line in README.splitlines() if line.startswith(f"| {name} "))
        cells = [cell.strip() for cell in row.strip("|").split("|")][2:]
        expected = [f"{parameters * per_parameter(n) / 2**30:.1f} GiB" for n in (1, 8, 64)]
        assert cells == expected


def test_run_json_is_a_run(tmp_path: Path) -> None:
    for text in blocks("json"):
        path = tmp_path / "run.json"
        path.write_text(text)
        assert dl.load_run(path).train.steps == json.loads(text)["train"]["steps"]


def fragments() -> list[tuple[str, str]]:
    """The rows of the table of keys: a fragment of JSON, and whether it is the DeepSpeed JSON's."""
    table = README[README.index("More that a run can say") :].split("\n\n")[1]
    found = re.findall(r"^\| `(.+?)`( in the DeepSpeed JSON)? \|", table, flags=re.MULTILINE)
    assert len(found) == len(table.splitlines()) - 2
    return found


@pytest.mark.parametrize(("fragment", "place"), fragments(), ids=lambda value: value[:30])
def test_table_of_keys_is_accepted(fragment: str, place: str) -> None:
    [text] = blocks("json")
    run = json.loads(text) | {"deepspeed": {"zero_optimization": {"stage": 2}}}
    run["evaluation"] = {"every_steps": 100}
    section = json.loads(f"{{{fragment}}}")
    target = run["deepspeed"] if place else run
    for name, value in section.items():
        target[name] = (target.get(name) or {}) | value
    if run["optimizer"].get("type"):
        run["optimizer"] = section["optimizer"]
    resolved = resolve(dl.load_run(run), 2)
    assert resolved.stage == 2


PAGES = sorted(
    str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    linked = re.findall(r"\]\(([^)#:]+)\)", text)
    named = re.findall(r"`((?:ds_llama|ds_configs|tests|launch|docs)/[\w./-]*)`", text)
    missing = [path for path in linked if not ((ROOT / page).parent / path).exists()]
    missing += [path for path in named if not (ROOT / path).exists()]
    assert not missing


def test_table_of_strategies_is_the_folder() -> None:
    told = set(re.findall(r"^\| `(zero\w+)` \| (?!optimizer)", README, flags=re.MULTILINE))
    told |= set(re.findall(r"^\| `(zero[123])` ", README, flags=re.MULTILINE))
    assert told == {path.stem for path in (ROOT / "ds_configs").glob("*.json")}
    words = {name: re.search(rf"^\| `{name}` (.*)$", README, re.MULTILINE)[1] for name in REFUSED}
    assert all("CUDA" in text for text in words.values()), words


def test_python_uses_names_that_exist() -> None:
    for text in blocks("python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.value.id != "dl" or hasattr(dl, node.attr)


def test_commands_exist() -> None:
    named = set(re.findall(r"^\S*ds-llama (\w+)", README, flags=re.MULTILINE))
    assert {"train", "data", "eval", "generate", "export", "checkpoint"} <= named
    for name in named:
        assert commands.load(commands.find(name))
