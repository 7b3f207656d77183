"""What whole documents in rows cost: places left empty, and attention within documents only.

    python -m tests.campaigns.packing [--short]

Documents have log-normal lengths (mean 400 tokens, deviation of the logarithm 1.2), cut at a row.
First table: rows of every way to pack them, and how long packing took. Second: forward and backward
of a small model over the same packed rows, attention within documents by a call for each, by a
dense mask, and across documents (causal, the windows' default); in turns, and the median of each.
Seconds are the process's own, on one core, so that a busy machine counts little; bytes are the peak
of live tensors beyond the model's. Exits with 1 if the losses of the first two differ.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ds_llama.config.model import LlamaConfig
from ds_llama.data import best_fit
from ds_llama.data.collate import Batch, collate
from ds_llama.data.sample import IGNORED, Sample
from ds_llama.measure.accounting import Account
from ds_llama.model.llama import Llama

SHAPE: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
SHORT = SHAPE | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}


def lengths_of(documents: int, room: int) -> best_fit.Ints:
    draw = np.random.default_rng(0)
    drawn = draw.lognormal(np.log(400) - 1.2**2 / 2, 1.2, documents)
    return np.clip(drawn, 2, room).astype(np.int64)


def packings(documents: int, room: int) -> None:
    """Rows that each way makes, and what share of their places is empty."""
    sizes = lengths_of(documents, room)
    print(f"{documents:,} documents of {sizes.mean():.0f} tokens on average, rows of {room}:")
    began = time.process_time()
    rows = len(best_fit.pack(sizes, room))
    taken = time.process_time() - began
    naive = int(best_fit.next_fit(sizes, room)[-1]) + 1
    found = {"best_fit": rows, "next-fit, in their order": naive, "none": documents}
    for name, count in found.items():
        print(f"  {name:<25} {count:>10,} rows, {1 - sizes.sum() / (count * room):7.3%} empty")
    print(f"  best_fit took {taken:.2f} s")


def batch_of(rows: int, room: int) -> Batch:
    """Some packed rows, drawn evenly."""
    sizes = lengths_of(1000, room)
    packed = best_fit.pack(sizes, room)
    samples = []
    for row in np.random.default_rng(1).choice(len(packed), rows, replace=False).tolist():
        held = sizes[packed.order[packed.starts[row] : packed.starts[row + 1]]]
        ids = np.random.default_rng(row).integers(0, SHAPE["vocab_size"], held.sum())
        labels = ids.copy()
        labels[np.cumsum(held) - held] = IGNORED
        samples.append(Sample(ids, labels, tuple(held.tolist())))
    return collate(samples, block_causal=True)


class Dense(torch.nn.Module):
    """The model with a mask of every token against every other, as Hugging Face makes it."""

    def __init__(self, model: Llama) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        model = self.model
        document = (batch["position_ids"] == 0).cumsum(-1)
        mask = (document[:, :, None] == document[:, None, :]).tril()[:, None]
        x = model.model.embed_tokens(batch["input_ids"])
        cos, sin = model.model.rotary.at(batch["position_ids"])
        for block in model.model.layers:
            x = block(x, cos, sin, mask)
        return model.lm_head(model.model.norm(x), batch["labels"])


def steps(shape: dict[str, Any], rows: int, room: int, repeats: int) -> bool:
    """Time and memory of each way; whether the first two have the same loss."""
    model = Llama(LlamaConfig.from_hf({**shape, "max_position_embeddings": room}), seed=0)
    batch, dense = batch_of(rows, room), Dense(model)
    across = {name: batch[name] for name in ("input_ids", "labels")}
    ways = {
        "a call a document": lambda: model(**batch).loss,
        "dense mask": lambda: dense(batch),
        "across documents": lambda: model(**across).loss,
    }
    documents = int((batch["document_lengths"] > 0).sum())
    print(f"{rows} rows of {batch['input_ids'].shape[1]}, {documents} documents, fp32:", flush=True)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    losses, peaks = {}, {}
    for _ in range(1 + repeats):
        for name, way in ways.items():
            began = time.process_time()
            way().backward()
            taken[name].append(time.process_time() - began)
            model.zero_grad()
    for way in taken.values():
        del way[0]  # the first pass warms up
    for name, way in ways.items():
        account = Account()
        account.track(model.parameters())
        with account, account.phase("step"):
            loss = way()
            loss.backward()
        held = sum(p.numel() * p.element_size() for p in model.parameters())
        losses[name], peaks[name] = loss.item(), account.phases[0].total.peak_bytes - held
        del loss
        model.zero_grad()
    first = statistics.median(taken["a call a document"])
    for name in ways:
        median = statistics.median(taken[name])
        print(
            f"  {name:<20} {median:7.3f} s, {median / first:5.2f} times the first; "
            f"{peaks[name] / 1e6:8.1f} MB; loss {losses[name]:.6f}"
        )
    return abs(losses["a call a document"] - losses["dense mask"]) < 1e-5


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true")
    asked = parser.parse_args(words)
    torch.set_num_threads(1)
    if asked.short:
        packings(2_000, 512)
        return 0 if steps(SHORT, 2, 128, 1) else 1
    for room in (2048, 8192):
        packings(1_000_000, room)
    cases = ((4, 512, 5), (2, 1024, 5), (1, 4096, 5))
    return 0 if all([steps(SHAPE, *case) for case in cases]) else 1


if __name__ == "__main__":
    sys.exit(main())
