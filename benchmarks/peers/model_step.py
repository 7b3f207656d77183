"""One forward and backward pass of our model and of Hugging Face's, side by side.

    python benchmarks/peers/model_step.py [--hidden 512 1024] [--vocabulary 32000 128256]
        [--length 512 2048] [--layers 4] [--threads 1] [--repeats 5] [--json]

Same weights, same batch of --tokens tokens, bf16, eager against eager on the CPU; a row for every
combination. Memory: live tensor bytes by storage, on fake tensors (the same as on real ones; the
peer's within 2 %): the whole peak, and the peak of what is neither a parameter nor a gradient.
Time: the two run in turn (A B A B), in CPU seconds of the process, which a busy machine disturbs
less than wall time; medians, and the median of the pairs' ratios. --repeats 0 leaves it and the
losses out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM
from transformers import LlamaConfig as HFConfig

from ds_llama.config import LlamaConfig
from ds_llama.measure.accounting import Account
from ds_llama.model.llama import Llama

PHASES = ("forward", "backward")
NOT_BEYOND = ("parameters", "gradients")


class Shape(NamedTuple):
    """One row."""

    hidden: int
    vocabulary: int
    length: int
    tokens: int

    def ids(self) -> Tensor:
        rows = max(self.tokens // self.length, 1)
        return torch.randint(0, self.vocabulary, (rows, self.length))


def build(hidden: int, vocabulary: int, layers: int) -> dict[str, nn.Module]:
    """Both models in bf16 with the same weights; heads of 64, 2.75 as wide within."""
    heads = hidden // 64
    shape = {"hidden_size": hidden, "intermediate_size": 11 * hidden // 4}
    shape |= {"num_attention_heads": heads, "num_key_value_heads": heads}
    shape |= {"vocab_size": vocabulary, "num_hidden_layers": layers}
    config = LlamaConfig.from_hf({**shape, "max_position_embeddings": 2048})
    theirs = HFConfig(**config.to_hf(), use_cache=False)
    torch.manual_seed(0)
    peer = AutoModelForCausalLM.from_config(theirs, dtype=torch.bfloat16)
    with _bf16():
        ours = Llama(config, init=False)
    ours.load_state_dict(peer.state_dict())
    return {"huggingface": peer, "ds_llama": ours}


@contextmanager
def _bf16() -> Iterator[None]:
    """Parameters are made in it: fake ones cannot be cast in place."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def peak_bytes(model: nn.Module, ids: Tensor) -> dict[str, int]:
    """Peak live bytes of each phase; `beyond` parameters and gradients over both."""
    model.zero_grad(set_to_none=True)
    account = Account(history=True)
    with account:
        for parameter in model.parameters():
            account.label(parameter, "parameters", owned=True)
        with account.phase("forward"):
            loss = model(input_ids=ids, labels=ids).loss
        with account.phase("backward"):
            loss.backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            account.label(parameter.grad, "gradients", owned=True)
    now = beyond = 0
    for change in account.history():
        now += 0 if change.category in NOT_BEYOND else change.delta_bytes
        beyond = max(beyond, now)
    whole = {phase.name: phase.total.peak_bytes for phase in account.phases}
    return {**whole, "beyond": beyond}


def seconds(model: nn.Module, ids: Tensor) -> dict[str, float]:
    """CPU seconds of each phase, all threads."""
    model.zero_grad(set_to_none=True)
    start = time.process_time()
    loss = model(input_ids=ids, labels=ids).loss
    middle = time.process_time()
    loss.backward()
    end = time.process_time()
    return {"forward": middle - start, "backward": end - middle, "step": end - start}


def memory(shape: Shape, layers: int) -> dict[str, Any]:
    """Peaks of both models, and the ratio of ours to the peer's."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        models = build(shape.hidden, shape.vocabulary, layers)
        found = {name: peak_bytes(model, shape.ids()) for name, model in models.items()}
    ours, peer = found["ds_llama"], found["huggingface"]
    whole = max(ours[p] for p in PHASES) / max(peer[p] for p in PHASES)
    ratio = {"whole": whole, "beyond": ours["beyond"] / peer["beyond"]}
    return {"peak_bytes": found, "memory_ratio": ratio}


def times(shape: Shape, layers: int, repeats: int) -> dict[str, Any]:
    """CPU seconds and losses of both models, and the ratio of ours to the peer's."""
    models, ids = build(shape.hidden, shape.vocabulary, layers), shape.ids()
    for model in models.values():
        seconds(model, ids)
    rows = [{name: seconds(model, ids) for name, model in models.items()} for _ in range(repeats)]
    phases = (*PHASES, "step")
    each = {name: {p: [row[name][p] for row in rows] for p in phases} for name in models}
    ours, peer = each["ds_llama"], each["huggingface"]
    return {
        "loss": {name: _loss(model, ids) for name, model in models.items()},
        "median_cpu_s": {n: {p: statistics.median(v[p]) for p in phases} for n, v in each.items()},
        "time_ratio": {
            p: statistics.median(a / b for a, b in zip(ours[p], peer[p], strict=True))
            for p in phases
        },
    }


def _loss(model: nn.Module, ids: Tensor) -> float:
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


def _line(row: dict[str, Any]) -> str:
    beyond = [row["peak_bytes"][name]["beyond"] / 2**20 for name in ("ds_llama", "huggingface")]
    text = f"{row['hidden']:6} {row['vocabulary']:10} {row['length']:6}"
    text += f" {beyond[0]:8.1f} {beyond[1]:8.1f} {row['memory_ratio']['beyond']:6.3f}"
    if "time_ratio" in row:
        cpu = [row["median_cpu_s"][name]["step"] for name in ("ds_llama", "huggingface")]
        text += f" {cpu[0]:8.2f} {cpu[1]:8.2f} {row['time_ratio']['step']:6.3f}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32000, 128256])
    parser.add_argument("--length", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--tokens", type=int, default=2048, help="of a batch")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.json:
        print(
            "hidden vocabulary length  MiB beyond: ours, theirs, ratio  CPU s: ours, theirs, ratio"
        )
    rows = []
    for hidden, vocabulary, length in product(options.hidden, options.vocabulary, options.length):
        shape = Shape(hidden, vocabulary, length, options.tokens)
        row = shape._asdict() | memory(shape, options.layers)
        if options.repeats:
            row |= times(shape, options.layers, options.repeats)
        rows.append(row)
        if not options.json:
            print(_line(row), flush=True)
    if options.json:
        about = {name: getattr(options, name) for name in ("layers", "threads", "repeats")}
        about |= {"torch": torch.__version__}
        print(json.dumps({**about, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
