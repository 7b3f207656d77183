"""Scripts that exist, before and after one line of theirs is changed: the same training, bit for
bit, unless the JSON has a mistake that DeepSpeed says nothing about."""

from __future__ import annotations

import base64
import json
import os
import re
import runpy
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR
from transformers.models.llama.modeling_llama import LlamaMLP

import ds_llama as dl
from ds_llama.errors import ConfigError, ConfigErrors
from ds_llama.zero import world

ROOT = Path(__file__).parents[3]
SCRIPTS = ROOT / "tests" / "scripts"
PAGE = ROOT / "docs" / "existing-scripts.md"

ADAM: dict[str, Any] = {"type": "Adam", "params": {"lr": 0.01, "torch_adam": True}}
GETTING_STARTED: dict[str, Any] = {
    "train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 1.0,
    "optimizer": ADAM,
    "zero_optimization": {"stage": 2},
}
HUGGING_FACE: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 3},
}


def after(name: str, folder: Path) -> Path:
    """The script with the page's diff applied, which changes one line."""
    [diff] = [d for d in re.findall(r"```diff\n(.*?)```", PAGE.read_text(), re.S) if name in d]
    changed = folder / f"rank{world.rank()}" / name
    changed.parent.mkdir(parents=True, exist_ok=True)
    command = ["patch", "--quiet", "--output", str(changed), str(SCRIPTS / name)]
    subprocess.run(command, input=diff, text=True, check=True)
    old, new = (path.read_text().splitlines() for path in (SCRIPTS / name, changed))
    assert len(old) == len(new)
    assert [(a, b) for a, b in zip(old, new, strict=True) if a != b] == [
        ("import deepspeed", "import ds_llama as deepspeed")
    ]
    return changed


def run(script: Path, *words: str) -> dict[str, Any]:
    """The script's globals after it has run with these arguments, as the launcher starts it."""
    before = sys.argv
    sys.argv = [str(script), f"--local_rank={os.environ['LOCAL_RANK']}", *words]
    try:
        return runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = before


def write(folder: Path, name: str, config: dict[str, Any]) -> str:
    path = folder / f"rank{world.rank()}" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config))
    return str(path)


def getting_started_trains_as_before(folder: Path) -> None:
    config = write(folder, "config", GETTING_STARTED)
    words = ("--deepspeed", "--deepspeed_config", config)
    runs = []
    for kind, script in (
        ("old", SCRIPTS / "getting_started.py"),
        ("new", after("getting_started.py", folder)),
    ):
        saved = ("--save_dir", str(folder / kind))
        whole = run(script, *words, *saved)
        resumed = run(script, *words, *saved, "--load_dir", str(folder / kind), "--ckpt_id=step3")
        assert len(whole["losses"]) == 8
        assert resumed["losses"] == whole["losses"][4:]
        assert whole["args"].deepspeed_config == config
        runs.append(whole)
    old, new = runs
    assert old["losses"] == new["losses"]
    assert same_parameters(old, new)
    other = write(folder, "other", GETTING_STARTED | {"gradient_clipping": 0.5})
    words = ("--deepspeed_config", other, "--save_dir", str(folder / "other"))
    other = run(SCRIPTS / "getting_started.py", *words)
    assert other["losses"] != old["losses"]
    assert not same_parameters(old, other)


def same_parameters(one: dict[str, Any], other: dict[str, Any]) -> bool:
    pairs = zip(one["model"].parameters(), other["model"].parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def hugging_face_trains_as_before(folder: Path) -> None:
    config = write(folder, "config", HUGGING_FACE)
    old = run(SCRIPTS / "hugging_face.py", "--config", config)
    new = run(after("hugging_face.py", folder), "--config", config)
    assert len(old["losses"]) == 8
    assert old["losses"] == new["losses"]


def recomputation_acts(folder: Path) -> None:
    """The section does nothing under DeepSpeed and recomputes the blocks under ours."""
    config = write(folder, "config", HUGGING_FACE | {"activation_checkpointing": {}})
    calls: list[int] = []
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, *_: calls.append(1) if isinstance(module, LlamaMLP) else None
    )
    try:
        old = run(SCRIPTS / "hugging_face.py", "--config", config)
        kept = len(calls)
        new = run(after("hugging_face.py", folder), "--config", config)
    finally:
        hook.remove()
    assert kept == 2 * len(old["losses"])
    assert len(calls) - kept == 2 * kept
    assert old["losses"] == new["losses"]


MISTAKES: dict[str, tuple[str, dict[str, Any], str]] = {
    "top-level": ("hugging_face.py", {"zero_optimisation": {"stage": 3}}, "zero_optimization"),
    "no-effect": (
        "hugging_face.py",
        {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
        "offload_param",
    ),
    "beside-params": (
        "getting_started.py",
        {"optimizer": ADAM | {"lr": 3e-4}},
        "'lr' stands beside 'params'",
    ),
    "twice": ("hugging_face.py", {"optimizer": ADAM}, "the script passes one too"),
}


def mistakes_are_errors(folder: Path) -> None:
    """DeepSpeed trains without a word; ours says what, where and what to write."""
    for name, (script, change, text) in MISTAKES.items():
        base = GETTING_STARTED if script == "getting_started.py" else HUGGING_FACE
        config = write(folder, name, {k: v for k, v in base.items() if k not in change} | change)
        if name == "top-level":
            config = write(folder, name, {"train_micro_batch_size_per_gpu": 2} | change)
        words = ("--config", config)
        if script == "getting_started.py":
            words = ("--deepspeed_config", config, "--save_dir", str(folder / name))
        assert run(SCRIPTS / script, *words)["losses"]
        with pytest.raises((ConfigError, ConfigErrors), match=re.escape(text)) as caught:
            run(after(script, folder), *words)
        assert config in str(caught.value)
        assert "remedy: " in str(caught.value)


def _forms(config: dict[str, Any], path: str) -> dict[str, Callable[[nn.Module], dict[str, Any]]]:
    """Every form that an argument of `deepspeed.initialize` may have."""
    text = base64.urlsafe_b64encode(json.dumps(config).encode()).decode()
    bare = {key: value for key, value in config.items() if key != "optimizer"}

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1)

    return {
        "dict": lambda m: {"config": dict(config)},
        "path": lambda m: {"config": path},
        "base64": lambda m: {"config": text},
        "config_params": lambda m: {"config_params": path},
        "args": lambda m: {"args": Namespace(deepspeed_config=path, local_rank=_local_rank())},
        "old-args": lambda m: {"args": Namespace(deepscale_config=path)},
        "generator": lambda m: {"config": path, "model_parameters": m.parameters()},
        "list": lambda m: {"config": path, "model_parameters": list(m.parameters())},
        "groups": lambda m: {
            "config": path,
            "model_parameters": [{"params": [p], "weight_decay": 0.1} for p in m.parameters()],
        },
        "optimizer": lambda m: {"config": bare, "optimizer": sgd(m.parameters())},
        "optimizer-callable": lambda m: {"config": bare, "optimizer": sgd},
        "scheduler-callable": lambda m: {"config": path, "lr_scheduler": ConstantLR},
        "scheduler": lambda m: (
            lambda optimizer: {
                "config": bare,
                "optimizer": optimizer,
                "lr_scheduler": ConstantLR(optimizer),
            }
        )(sgd(m.parameters())),
        "dist-init": lambda m: {"config": path, "dist_init_required": True},
        "mesh": lambda m: {"config": path, "mesh_param": (world.world_size(), 1)},
    }


def _local_rank() -> int:
    return int(os.environ["LOCAL_RANK"])


def _two_steps(module: Any, arguments: dict[str, Any], model: nn.Module) -> list[float]:
    engine, optimizer, loader, scheduler = module.initialize(model=model, **arguments)
    assert optimizer is engine.optimizer
    assert loader is None
    assert (scheduler is None) == ("lr_scheduler" not in arguments)
    inputs = torch.randn(2, 8, generator=torch.Generator().manual_seed(world.rank()))
    losses = []
    for _ in range(2):
        loss = engine(inputs).square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def every_form_of_every_argument(folder: Path) -> None:
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": 1.0,
        "optimizer": ADAM,
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
    }
    for name, form in _forms(config, write(folder, "config", config)).items():
        losses = []
        for module in (deepspeed, dl):
            torch.manual_seed(0)
            model = nn.Linear(8, 8)
            losses.append(_two_steps(module, form(model), model))
        assert losses[0] == losses[1], name
        assert losses[0][0] != losses[0][1]


CELLS = {
    "every-form": ((2,), every_form_of_every_argument),
    "getting-started": ((2,), getting_started_trains_as_before),
    "hugging-face": ((2,), hugging_face_trains_as_before),
    "recomputation": ((2,), recomputation_acts),
    "mistakes": ((2,), mistakes_are_errors),
}
