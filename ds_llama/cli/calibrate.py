"""`ds-llama plan --calibrate`: measure this machine for `ds-llama plan --hardware local`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ds_llama.errors import CallError


def small_model(device: Any) -> Callable[[], None]:
    """One forward and backward pass of a model whose arithmetic is nothing."""
    import torch

    from ds_llama.config.model import LlamaConfig
    from ds_llama.model.llama import Llama

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=8,
    )
    model = Llama(config).to(device)
    ids = torch.arange(8, device=device)[None]

    def once() -> None:
        model.zero_grad()
        model(ids, labels=ids).loss.backward()

    return once


def calibrate(out: Path | None = None, folder: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """Measure, write the profile, and return where it is and what it says; about a minute.

    out: the file, the user's cache without one. folder: whose disk is measured, the working one
    without one. Raises CallError where neither can be written.
    """
    from ds_llama.measure.calibrate import calibrate as measure
    from ds_llama.planner.hardware import profile_path

    target = profile_path() if out is None else out
    where = Path() if folder is None else folder
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
        profile = measure(where, small_model)
        target.write_text(json.dumps(profile, indent=2) + "\n")
    except OSError as error:
        raise CallError(
            f"the profile cannot be measured or written: {error.strerror}",
            where=str(error.filename or target),
            remedy="write it elsewhere with --out FILE, from a folder that can be written",
        ) from None
    return target, profile


_UNITS = {
    "memory_bytes_per_s": "memory, copying",
    "host_memory_bytes_per_s": "host memory, AdamW",
    "link_bytes_per_s": "between ranks, all-reduce",
    "host_link_bytes_per_s": "host to device",
    "nvme_read_bytes_per_s": "disk, reading",
    "nvme_write_bytes_per_s": "disk, writing and syncing",
}


def text(target: Path, profile: dict[str, Any]) -> str:
    """One line a figure."""
    lines = [
        f"  matmul in {name:16s} {value:10.3f} TFLOP/s"
        for name, value in profile["tflops"].items()
        if value is not None
    ]
    lines += [
        f"  {words:26s} {profile[key] / 1e9:10.3f} GB/s"
        for key, words in _UNITS.items()
        if profile.get(key)
    ]
    lines.append(f"  {'one small operation':26s} {profile['launch_s'] * 1e6:10.1f} us")
    for ranks, own in profile.get("by_ranks", {}).items():
        each = (f"{value:.3f} in {name}" for name, value in own["tflops"].items() if value)
        lines.append(
            f"  each of {ranks} ranks: {', '.join(each)} TFLOP/s, "
            f"memory {own['memory_bytes_per_s'] / 1e9:.1f} GB/s, "
            f"all-reduce {own['link_bytes_per_s'] / 1e9:.2f} GB/s, "
            f"operation {own['launch_s'] * 1e6:.1f} us"
        )
    source = profile["sources"]["tflops"]
    use = "local" if "hardware.json" in target.name else str(target)
    return "\n".join([source, *lines, f"wrote {target}; use it with --hardware {use}"])
