"""Loss and perplexity on held-out windows, on one process or on all ranks of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from ds_llama.data.collate import Batch, collate
from ds_llama.data.sample import IGNORED, Sample
from ds_llama.data.shards import vocabulary_error
from ds_llama.errors import CallError
from ds_llama.evals.asking import device_of, eval_mode, rank_and_world
from ds_llama.measure import pulse
from ds_llama.model.inputs import inputs_of
from ds_llama.model.traits import find_traits


class Windows(Protocol):
    """Samples; or sequences of equal length, int64 (T,), predicted in all tokens but the first.

    Or pairs of such a sequence and its labels, -100 where nothing is predicted. Documents are kept
    apart where there is an attribute `block_causal`, and it is true.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Perplexity:
    """`loss`: mean cross entropy in nats over `tokens` predicted tokens."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """e to the loss; infinity beyond what a float holds."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    def bits_per_byte(self, utf8_bytes: int) -> float:
        """Bits that the predicted tokens cost, over the bytes of their text: any tokenizer's."""
        return self.loss * self.tokens / math.log(2) / utf8_bytes

    def to_dict(self) -> dict[str, float | int]:
        return {"loss": self.loss, "perplexity": self.perplexity, "tokens": self.tokens}


@torch.no_grad()
def evaluate(
    model: Any,
    dataset: Windows,
    *,
    micro_batch_size: int,
    max_batches: int | None = None,
    vocab_size: int | None = None,
) -> Perplexity:
    """Loss over the first `max_batches` micro-batches of `dataset`, all of them when None.

    model: a DeepSpeed engine, or any module called with `input_ids` and `labels` whose output's
    `.loss` is the mean over valid tokens, in Hugging Face's convention. It is put into eval mode
    for the time being. With a process group this is collective: batch i is rank i mod world's, and
    every rank returns the result of all. Which windows count does not depend on the world size.
    Raises CallError when there is nothing to evaluate, and with `vocab_size` DataError for an id
    that the model does not have, which on a GPU would be an assertion without a place.
    """
    if len(dataset) == 0 or (max_batches is not None and max_batches < 1):
        raise CallError(
            "there is no batch to evaluate",
            where="evaluation",
            remedy="give a validation shard of at least one window, and max_batches of 1 or more",
        )
    device, module = device_of(model), getattr(model, "module", model)
    sums = torch.zeros(2, dtype=torch.float64)
    with eval_mode(model):
        for batch in _batches(dataset, micro_batch_size, max_batches):
            pulse.HERE.alive()
            largest = int(batch["input_ids"].max())
            if vocab_size is not None and largest >= vocab_size:
                raise vocabulary_error(largest, vocab_size, where=repr(dataset))
            loss = model(**inputs_of(batch, device, find_traits(module))).loss
            valid = int((batch["labels"][:, 1:] != IGNORED).sum())
            if valid:  # else the mean of nothing, which some models call NaN
                sums += torch.tensor([float(loss) * valid, valid], dtype=torch.float64)
    total, tokens = _over_ranks(sums, device).tolist()
    return Perplexity(total / tokens if tokens else math.nan, int(tokens))


def _batches(dataset: Windows, micro_batch_size: int, max_batches: int | None) -> Iterator[Batch]:
    """This rank's batches; as many on every rank.

    A rank whose turn is past the end sees the first window without labels: at ZeRO-3 its
    parameters are needed by the others' forward pass.
    """
    rank, world = rank_and_world()
    apart = getattr(dataset, "block_causal", False)
    count = math.ceil(len(dataset) / micro_batch_size)
    count = count if max_batches is None else min(count, max_batches)
    for turn in range(math.ceil(count / world)):
        number = turn * world + rank
        start = number * micro_batch_size
        if number >= count:
            batch = collate([_sample(dataset[0])], apart)
            batch["labels"].fill_(IGNORED)
            yield batch
            continue
        stop = min(start + micro_batch_size, len(dataset))
        yield collate([_sample(dataset[index]) for index in range(start, stop)], apart)


def _sample(window: Any) -> Sample:
    if isinstance(window, Sample):
        return window
    ids, labels = window if isinstance(window, tuple) else (window, window)
    return Sample(ids, labels, (len(ids),))


def _over_ranks(sums: torch.Tensor, device: torch.device) -> torch.Tensor:
    if rank_and_world()[1] == 1:
        return sums
    shared = sums.to(device)
    dist.all_reduce(shared)
    # A learning rate or the end of a run may hang on it: the same bits, whatever the algorithm.
    dist.broadcast(shared, 0)
    return shared.cpu()
