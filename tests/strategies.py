"""What is known of the shipped DeepSpeed JSONs that several tests use."""

from __future__ import annotations

import json
from typing import Any

from ds_llama.config import shipped

# Refused on a CPU by `ds-llama train`: (code of the error, words of its message).
REFUSED = {
    "zero3_zeropp": ("needs-gpu", "DeepSpeed has no quantizer for CPU"),
    "zero3_superoffload": ("needs-gpu", "DeepSpeed asserts a CUDA device"),
    "zero3_deepcompile": ("needs-gpu", "its passes are compiled for CUDA"),
    "zero3_zenflow": ("zenflow-in-a-run", "keeps every matrix transposed"),
}


def content(name: str) -> dict[str, Any]:
    """A shipped DeepSpeed JSON."""
    return json.loads(shipped.find(name).read_text())
