"""One forward and backward pass of our model and of Hugging Face's, side by side.

    python benchmarks/peers/model_step.py [--threads 2] [--repeats 9] [--layers 8] [--json]

Same weights, same batch, bf16, eager against eager on the CPU. Memory: peak of live tensor bytes by
storage, parameters and gradients included (deterministic). Time: the two run in turn (A B A B); the
median of the pairs' ratios, per phase, and the ratio of each side's fastest run, which a busy
machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig as HFConfig
from transformers import LlamaForCausalLM

from ds_llama.config import LlamaConfig
from ds_llama.measure.accounting import Account
from ds_llama.model.llama import Llama

PHASES = ("forward", "backward")


def build(layers: int) -> dict[str, nn.Module]:
    """Both models at the reference shape, in bf16, with the same weights."""
    shape = {"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8}
    config = LlamaConfig.from_hf({**shape, "vocab_size": 32000, "num_hidden_layers": layers})
    torch.manual_seed(0)
    peer = LlamaForCausalLM(HFConfig(**config.to_hf(), use_cache=False)).bfloat16()
    ours = Llama(config, init=False).bfloat16()
    ours.load_state_dict(peer.state_dict())
    return {"huggingface": peer, "ds_llama": ours}


def peak_bytes(model: nn.Module, ids: Tensor) -> dict[str, int]:
    """Peak live bytes of each phase."""
    model.zero_grad(set_to_none=True)
    account = Account()
    account.track(model.parameters())
    with account:
        with account.phase("forward"):
            loss = model(input_ids=ids, labels=ids).loss
        with account.phase("backward"):
            loss.backward()
    return {phase.name: phase.total.peak_bytes for phase in account.phases}


def seconds(model: nn.Module, ids: Tensor) -> dict[str, float]:
    """Wall time of each phase."""
    model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    loss = model(input_ids=ids, labels=ids).loss
    middle = time.perf_counter()
    loss.backward()
    end = time.perf_counter()
    return {"forward": middle - start, "backward": end - middle, "step": end - start}


def measure(models: dict[str, nn.Module], ids: Tensor, repeats: int) -> dict[str, Any]:
    """Rows of both models and the ratio of ours to the peer's."""
    memory = {name: peak_bytes(model, ids) for name, model in models.items()}
    peaks = {name: max(phases.values()) for name, phases in memory.items()}
    for model in models.values():
        seconds(model, ids)
    rows = [{name: seconds(model, ids) for name, model in models.items()} for _ in range(repeats)]
    phases = (*PHASES, "step")
    each = {name: {p: [row[name][p] for row in rows] for p in phases} for name in models}
    ours, peer = each["ds_llama"], each["huggingface"]
    return {
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "torch": torch.__version__,
        "loss": {name: _loss(model, ids) for name, model in models.items()},
        "peak_bytes": memory,
        "memory_ratio": peaks["ds_llama"] / peaks["huggingface"],
        "median_s": {n: {p: statistics.median(v[p]) for p in phases} for n, v in each.items()},
        "time_ratio": {
            p: statistics.median(a / b for a, b in zip(ours[p], peer[p], strict=True))
            for p in phases
        },
        "fastest_ratio": {p: min(ours[p]) / min(peer[p]) for p in phases},
    }


def _loss(model: nn.Module, ids: Tensor) -> float:
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument(
        "--tokens", type=int, nargs=2, default=(4, 512), metavar=("BATCH", "LENGTH")
    )
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    models = build(options.layers)
    ids = torch.randint(0, 32000, tuple(options.tokens))
    result = measure(models, ids, options.repeats)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for name, phases in result["peak_bytes"].items():
        text = ", ".join(f"{phase} {size / 1e6:.1f} MB" for phase, size in phases.items())
        print(f"{name:12s} peak {text}; loss {result['loss'][name]:.5f}")
    print(f"memory ratio {result['memory_ratio']:.3f}")
    for phase in (*PHASES, "step"):
        print(
            f"{phase:9s} time ratio, median of pairs {result['time_ratio'][phase]:.3f}, "
            f"fastest runs {result['fastest_ratio'][phase]:.3f}"
        )


if __name__ == "__main__":
    main()
