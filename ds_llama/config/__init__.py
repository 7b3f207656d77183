"""What a run is: model, data, optimizer, DeepSpeed JSON; read, checked and resolved. No torch."""

from __future__ import annotations

from ds_llama.config.load import load_run
from ds_llama.config.model import LlamaConfig
from ds_llama.config.sizes import preset, presets

__all__ = ["LlamaConfig", "load_run", "preset", "presets"]
