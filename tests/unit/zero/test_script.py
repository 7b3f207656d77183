"""What `dl.initialize` refuses, and `ds_llama` under the name of deepspeed."""

from __future__ import annotations

import inspect
import os
import re
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from torch import nn

import ds_llama
from ds_llama.errors import CallError, ConfigError, ConfigErrors
from ds_llama.zero import world

CONFIG: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_clipping": 1.0,
    "optimizer": {"type": "Adam", "params": {"lr": 0.1, "torch_adam": True}},
}


def refused(error: type[Exception], text: str, **arguments: Any) -> Any:
    with pytest.raises(error, match=text) as caught:
        ds_llama.initialize(**arguments)
    return caught.value


def test_no_model() -> None:
    error = refused(CallError, "without a model", config=CONFIG)
    assert error.remedy == "pass model=, a torch.nn.Module"


@pytest.mark.parametrize("args", [None, Namespace(), Namespace(deepspeed_config=None)])
def test_no_json(args: Namespace | None) -> None:
    error = refused(CallError, "no DeepSpeed JSON", model=nn.Linear(2, 2), args=args)
    assert "--deepspeed_config" in error.remedy


def test_two_jsons_are_not_chosen_between() -> None:
    args = Namespace(deepspeed_config="ds.json")
    error = refused(CallError, "two DeepSpeed JSONs", model=nn.Linear(2, 2), args=args, config={})
    assert "--deepspeed_config ds.json" in error.remedy


def test_a_missing_file_and_a_comment(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    refused(CallError, "cannot be read", model=nn.Linear(2, 2), config=path)
    path.write_text("{\n  # clip\n}")
    error = refused(CallError, "not JSON", model=nn.Linear(2, 2), config=str(path))
    assert error.where == f"{path}:2:3"


@pytest.mark.parametrize("name", ["optimizer", "scheduler"])
def test_the_same_thing_twice(name: str) -> None:
    argument = {"optimizer": torch.optim.SGD, "scheduler": None}
    argument = {{"optimizer": "optimizer", "scheduler": "lr_scheduler"}[name]: torch.optim.SGD}
    config = CONFIG | {"scheduler": {"type": "WarmupLR", "params": {}}}
    error = refused(
        ConfigError, f"section {name!r}", model=nn.Linear(2, 2), config=config, **argument
    )
    assert error.where == f"config:{name}"
    assert "remove the section" in error.remedy


def test_every_mistake_at_once() -> None:
    config = CONFIG | {"zero_optimisation": {"stage": 2}, "bf16": {"enable": True}}
    error = refused(ConfigErrors, "zero_optimisation", model=nn.Linear(2, 2), config=config)
    assert len(error.errors) == 2
    assert "bf16.enable" in str(error)


def test_what_is_only_suspicious_is_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(deepspeed.utils.logger, "warning", said.append)
    monkeypatch.setattr("ds_llama.zero.engine.create", lambda *_, **__: (None,) * 4)
    monkeypatch.setattr("ds_llama.zero.script.init_distributed", lambda **_: None)
    monkeypatch.setattr(deepspeed.checkpointing, "configure", lambda *_, **__: None)
    config = {key: value for key, value in CONFIG.items() if key != "gradient_clipping"}
    section = {"activation_checkpointing": {}}
    ds_llama.initialize(model=nn.Linear(2, 2), config=config | section)
    assert [text.split(": ")[0] for text in said] == [
        "config:activation_checkpointing",
        "config:gradient_clipping",
    ]
    said.clear()
    model = ds_llama.Llama(ds_llama.preset("debug"), init=False)
    ds_llama.initialize(model=model, config=CONFIG | section)
    assert said == []
    monkeypatch.setattr(world, "rank", lambda: 1)
    ds_llama.initialize(model=nn.Linear(2, 2), config=config | section)
    assert said == []


def test_the_names_that_scripts_use_are_deepspeeds() -> None:
    for name in ("add_config_arguments", "checkpointing", "comm", "ops", "utils"):
        assert getattr(ds_llama, name) is getattr(deepspeed, name)
    for name in ds_llama.zero.__all__:
        assert getattr(ds_llama.zero, name) is getattr(deepspeed.zero, name)
    words = ["--deepspeed", "--deepspeed_config", "ds.json"]
    args = ds_llama.add_config_arguments(ArgumentParser()).parse_args(words)
    assert (args.deepspeed, args.deepspeed_config) == (True, "ds.json")


@pytest.mark.parametrize("variable", [None, "RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK"])
def test_a_world_of_one_only_where_nobody_launched(
    variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    if variable:
        monkeypatch.setenv(variable, "3")
    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", True)
    world.prepare()
    assert ("LOCAL_SIZE" in os.environ) == (variable is None)
    assert not deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"]


@pytest.mark.parametrize(("size", "alone"), [("1", True), ("2", False)])
def test_a_single_task_of_srun_with_pmi_is_a_world_of_one(
    size: str, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", size)
    monkeypatch.setitem(deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm", True)
    world.prepare()
    assert ("LOCAL_SIZE" in os.environ) == alone


def test_the_page_names_every_argument() -> None:
    page = (Path(__file__).parents[3] / "docs" / "existing-scripts.md").read_text()
    names = set(inspect.signature(deepspeed.initialize).parameters)
    assert names == set(inspect.signature(ds_llama.initialize).parameters)
    assert {name for name in names if not re.search(rf"`{name}[`=]", page)} == set()
