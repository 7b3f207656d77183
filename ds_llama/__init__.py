"""LLaMA under DeepSpeed ZeRO.

The public face is lazy (PEP 562): a name's module is imported when the name is first used, so
that `import ds_llama` and `ds-llama --help` cost neither torch nor deepspeed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> where it lives.
_FACE = {
    "Llama": ("ds_llama.model.llama", "Llama"),
    "LlamaConfig": ("ds_llama.config.model", "LlamaConfig"),
    "add_config_arguments": ("deepspeed", "add_config_arguments"),
    "averaged": ("ds_llama.zero.ema", "averaged"),
    "construct": ("ds_llama.trainer.build", "construct"),
    "init_distributed": ("ds_llama.zero.script", "init_distributed"),
    "initialize": ("ds_llama.zero.script", "initialize"),
    "load_run": ("ds_llama.config", "load_run"),
    "plan": ("ds_llama.planner.advise", "plan"),
    "preset": ("ds_llama.config", "preset"),
    "presets": ("ds_llama.config", "presets"),
    "register": ("ds_llama.zero.register", "register"),
    "register_traits": ("ds_llama.model.traits", "register_traits"),
    "simulate": ("ds_llama.simulator", "simulate"),
    "train": ("ds_llama.trainer.train", "train"),
}

# What else scripts name that say `import ds_llama as deepspeed`; `zero` forwards the rest.
_DEEPSPEED = ("checkpointing", "comm", "ops", "utils")

if TYPE_CHECKING:
    from deepspeed import add_config_arguments

    from ds_llama.config import load_run, preset, presets
    from ds_llama.config.model import LlamaConfig
    from ds_llama.model.llama import Llama
    from ds_llama.model.traits import register_traits
    from ds_llama.planner.advise import plan
    from ds_llama.simulator import simulate
    from ds_llama.trainer.build import construct
    from ds_llama.trainer.train import train
    from ds_llama.zero.ema import averaged
    from ds_llama.zero.register import register
    from ds_llama.zero.script import init_distributed, initialize

__all__ = [
    "Llama",
    "LlamaConfig",
    "__version__",
    "add_config_arguments",
    "averaged",
    "construct",
    "init_distributed",
    "initialize",
    "load_run",
    "plan",
    "preset",
    "presets",
    "register",
    "register_traits",
    "simulate",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "zero":
        return importlib.import_module("ds_llama.zero")
    if name in _DEEPSPEED:
        return getattr(importlib.import_module("deepspeed"), name)
    try:
        module, attribute = _FACE[name]
    except KeyError:
        raise AttributeError(
            f"module 'ds_llama' has no attribute {name!r}; its names are {', '.join(sorted(_FACE))}"
        ) from None
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value  # later uses cost a dict look-up
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
