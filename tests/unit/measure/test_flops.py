"""FLOPs against `flops_per_token`, which knows nothing of operations, and against torch's counter."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from ds_llama.config import LlamaConfig
from ds_llama.config.shipped import preset, presets
from ds_llama.measure.flops import Flops
from ds_llama.model.llama import Llama
from ds_llama.model import attention

SHAPE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
