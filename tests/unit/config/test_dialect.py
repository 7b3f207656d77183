"""Where "auto" is filled in, read off transformers and accelerate as they are installed."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from ds_llama.config.deepspeed import FILLED, SCHEMA, check
from ds_llama.config.keys import Key


def source(package: str, file: str) -> ast.AST:
    (folder,) = importlib.util.find_spec(package).submodule_search_locations
    return ast.parse(Path(folder, file).read_text())


def function(tree: ast.AST, name: str) -> ast.AST:
    (found,) = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name]
    return found


def filled_by(tree: ast.AST) -> set[str]:
    """Keys that are the first argument of `fill_match` or `fill_only`."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    names = {
        call.args[0].value
        for call in calls
        if ast.unparse(call.func).split(".")[-1] in ("fill_match", "fill_only")
        and isinstance(call.args[0], ast.Constant)
    }
    return names


def keyed(tree: ast.AST, name: str) -> set[str]:
    """Keys of the dict that is called `name`, and of what updates it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            found |= {ast.literal_eval(key) for key in node.value.keys}
        if isinstance(node, ast.Call) and ast.unparse(node.func) == f"{name}.update":
            found |= {ast.literal_eval(key) for key in node.args[0].keys}
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == name:
            found.add(ast.literal_eval(node.slice))
    return found


def test_filled_keys_are_those_of_the_trainer_and_accelerate():
    trainer = filled_by(source("transformers", "integrations/deepspeed.py"))
    plugin = source("accelerate", "utils/dataclasses.py")
    (mapping,) = [
        node.value
        for node in ast.walk(plugin)
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "plugin_to_config_mapping"
    ]
    prepare = function(source("accelerate", "accelerator.py"), "_prepare_deepspeed")
    theirs = trainer | filled_by(plugin) | filled_by(prepare)
    theirs |= {ast.literal_eval(value) for value in mapping.values}
    theirs |= keyed(prepare, "config_kwargs")
    assert theirs | {"steps_per_print"} == FILLED
    assert 'self.deepspeed_config["steps_per_print"] = float("inf")' in ast.unparse(plugin).replace(
        "'", '"'
    )


def leaves():
    for name, entry in SCHEMA.keys.items():
        yield from [(name, entry)] if isinstance(entry, Key) else entry.leaves(f"{name}.")


def nested(path: str, value: object) -> dict[str, object]:
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


@pytest.mark.parametrize("dialect", ["deepspeed", "huggingface"])
def test_auto_at_every_key_there_is(dialect):
    """For the Trainer it fits where it is filled in, and for DeepSpeed where that reads it."""
    for path, key in leaves():
        found = {p.code for p in check(nested(path, "auto"), dialect=dialect) if p.key == path}
        codes = {"auto-value", "auto-unfilled", "wrong-value"} & found
        if dialect == "huggingface":
            assert (codes == set()) == (path in FILLED), path
        else:
            text = "str" in key.kind.split("|") and (not key.choices or "auto" in key.choices)
            assert (codes == set()) == (key.auto or text), path


def test_accelerate_raises_where_we_say_so():
    """The real thing: what it makes of "auto" at keys that it knows and at others."""
    from accelerate.utils import DeepSpeedPlugin

    zero = {"stage": 3, "reduce_bucket_size": 1}
    for path, fits in (("gradient_clipping", True), ("zero_optimization.sub_group_size", False)):
        content = {"zero_optimization": dict(zero), "train_micro_batch_size_per_gpu": 1}
        owner = content if "." not in path else content["zero_optimization"]
        owner[path.split(".")[-1]] = "auto"
        plugin = DeepSpeedPlugin(hf_ds_config=content)
        found = {p.code for p in check(content, dialect="huggingface")}
        assert ("auto-unfilled" in found) == (not fits)
        if fits:
            plugin.deepspeed_config_process(must_match=False, gradient_clipping=1.0)
            continue
        with pytest.raises(ValueError, match="not found in kwargs"):
            plugin.deepspeed_config_process(must_match=False, gradient_clipping=1.0)
    with pytest.raises(ValueError, match="Please specify the ZeRO optimization config"):
        DeepSpeedPlugin(hf_ds_config={"train_micro_batch_size_per_gpu": 1})
