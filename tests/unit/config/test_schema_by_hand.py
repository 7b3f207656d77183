"""Sections that DeepSpeed parses by hand: the names in its parsers' source, against our schema.

Each assertion compares two sets, so that a new release fails with the names that differ.
"""

from __future__ import annotations

import ast
import inspect
from types import ModuleType

from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
from deepspeed.ops.lamb import FusedLamb
from deepspeed.ops.lion import DeepSpeedCPULion, FusedLion
from deepspeed.runtime import config as runtime
from deepspeed.runtime import constants
from deepspeed.runtime.data_pipeline import config as data_pipeline
from deepspeed.runtime.data_pipeline import constants as data_constants
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.model_checkpointing import config as checkpointing
from deepspeed.runtime.model_checkpointing import constants as checkpoint_constants

from ds_llama.config import unknown
from ds_llama.config.deepspeed import check, lookup
from ds_llama.config.keys import Section
from ds_llama.config.keys_training import OPTIMIZERS


def keys(path: str) -> set[str]:
    section = lookup(path.split("."))
    assert isinstance(section, Section)
    return set(section.keys)


def source(function: object) -> ast.AST:
    return ast.parse(inspect.cleandoc("\n" + inspect.getsource(function)))


def values_named(function: object, module: ModuleType) -> set[str]:
    """Values of the constants of `module` that a function mentions, without its defaults."""
    names = {node.id for node in ast.walk(source(function)) if isinstance(node, ast.Name)}
    names = {name for name in names if name.isupper() and not name.endswith("_DEFAULT")}
    found = {getattr(module, name, None) for name in names}
    return {value for value in found if isinstance(value, str)}


def test_checkpoint():
    read = {
        constants.CHECKPOINT_TAG_VALIDATION,
        constants.LOAD_UNIVERSAL_CHECKPOINT,
        constants.USE_NODE_LOCAL_STORAGE_CHECKPOINT,
    }
    read |= values_named(runtime.get_checkpoint_parallel_write_pipeline, constants)
    read |= values_named(checkpointing.get_checkpoint_config, checkpoint_constants)
    inner = keys("checkpoint.parallel_write")
    assert read - {"checkpoint"} - inner == keys("checkpoint")
    assert read & inner == inner
    writer = values_named(checkpointing.get_checkpoint_writer_config, checkpoint_constants)
    assert writer - {"writer"} == keys("checkpoint.writer")


def test_data_types():
    """`data_types_params.get(X, …)` in `_initialize_params`, and what is read beside it."""
    calls = [
        node
        for node in ast.walk(source(runtime.DeepSpeedConfig._initialize_params))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "data_types_params.get"
    ]
    read = {getattr(constants, ast.unparse(call.args[0])) for call in calls}
    assert read == keys("data_types")


def test_torch_autocast():
    read = set[str]().union(
        *(
            values_named(function, constants)
            for name, function in vars(runtime).items()
            if name in ("get_torch_autocast_enabled", "get_torch_autocast_dtype")
            or name == "get_lower_precision_safe_modules"
        )
    )
    assert read - {"torch_autocast"} == keys("torch_autocast")


def test_pipeline():
    (first,) = [
        node
        for node in ast.walk(source(runtime.get_pipeline_config))
        if isinstance(node, ast.Dict) and node.keys
    ]
    assert {ast.literal_eval(key) for key in first.keys} == keys("pipeline")


def test_data_efficiency():
    tree = ast.parse(inspect.getsource(data_pipeline))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names = {name for name in names if name.isupper() and not name.endswith("_DEFAULT")}
    read = {getattr(data_constants, name) for name in names if hasattr(data_constants, name)}
    section = lookup(["data_efficiency"])
    assert isinstance(section, Section)
    ours = set(_names(section))
    # Read by the schedulers of the two, not by the parser.
    inside = {name for name in ours if name in vars(data_constants).values()}
    assert read - {"data_efficiency", "curriculum_learning_legacy"} <= ours
    assert {name for name in ours if name not in read | inside} == set()


def _names(section: Section):
    for name, entry in section.keys.items():
        yield name
        if isinstance(entry, Section):
            yield from _names(entry)


def test_optimizers_take_what_their_constructors_take():
    def parameters(*classes: type) -> set[str]:
        found = set().union(*(inspect.signature(cls.__init__).parameters for cls in classes))
        return found - {"self", "params", "model_params", "adamw_mode", "adam_w_mode"}

    # The engine takes these out of the parameters before it constructs.
    popped = {
        getattr(constants, name)
        for name in ("TORCH_ADAM_PARAM", "ADAM_W_MODE")
        if hasattr(constants, name)
    }
    popped |= {"torch_adam", "adam_w_mode", "foreach"}
    assert parameters(FusedAdam, DeepSpeedCPUAdam) == set(OPTIMIZERS["adamw"].keys) - popped
    # the engine stops at max_grad_norm before (runtime/engine.py, `_configure_basic_optimizer`)
    assert parameters(FusedLamb) - {"max_grad_norm"} == set(OPTIMIZERS["lamb"].keys)
    assert parameters(FusedLion, DeepSpeedCPULion) == set(OPTIMIZERS["lion"].keys)
    engine = inspect.getsource(DeepSpeedEngine)
    assert "optimizer_parameters.pop('foreach'" in engine
    assert "optimizer_parameters.pop('fp32_optimizer_states'" in engine


# --- another release than the one that the schema was read from


def test_against_a_newer_release_an_unknown_key_is_a_warning(monkeypatch):
    monkeypatch.setattr(unknown, "newer_release", lambda: "0.20.1")
    (problem,) = check({"zero_optimization": {"stagex": 2}, "gradient_clipping": 1})
    assert (problem.code, problem.severity) == ("newer-key", "warning")
    assert problem.message == (
        "unknown key 'stagex': ds_llama knows DeepSpeed 0.19.8, this is 0.20.1"
    )
    assert problem.remedy == "did you mean 'stage'?"
    # the rules do not take the key for absent, and names that were removed stay errors
    assert [p.code for p in check({"amp": {}, "gradient_clipping": 1})] == ["removed-key"]


def test_which_release_is_newer(monkeypatch):
    def newer(version):
        monkeypatch.setattr(unknown.metadata, "version", lambda name: version)
        return unknown.newer_release.__wrapped__()

    assert newer("0.19.8") is None
    assert newer("0.19.8+cu128") is None
    assert newer("0.18.20") is None
    assert newer("0.19.9") == "0.19.9"
    assert newer("0.19.10+abc") == "0.19.10+abc"
    assert newer("1.0") == "1.0"

    def missing(name):
        raise unknown.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(unknown.metadata, "version", missing)
    assert unknown.newer_release.__wrapped__() is None
