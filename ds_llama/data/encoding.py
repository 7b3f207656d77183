"""Documents to ids on several processes, in order."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ds_llama.data.reading import Batch
from ds_llama.data.shards import id_dtype
from ds_llama.data.tokenizer import load_tokenizer
from ds_llama.errors import RunError

_AHEAD = 4


@dataclass(frozen=True)
class Policy:
    """How a record becomes ids, and which split it belongs to.

    `format` names the encoder, `template` a chat template. With a `mask` the encoder says of each
    id whether it is learnt.
    """

    tokenizer: str
    bos: bool
    eos: bool
    validation_fraction: float
    format: str = "text"
    template: str | None = None

    @property
    def mask(self) -> bool:
        return self.format != "text"


class Document(NamedTuple):
    """One record's ids, and with `Policy.mask` a 1 for each that is learnt, a 0 for others."""

    ids: Sequence[int]
    mask: Sequence[int] | None = None


class Encoder(Protocol):
    """Made once in each process. Gives for each text a document, or what is wrong with it.

    `asked`: what its ids depend on and the policy does not tell.
    """

    vocab_size: int
    asked: dict[str, Any]

    def __call__(self, texts: list[str]) -> Sequence[Document | str]: ...


class TextEncoder:
    """`[BOS] ids [EOS]` of a text. Raises DataError for a tokenizer that has none."""

    def __init__(self, policy: Policy) -> None:
        self._tokenizer = load_tokenizer(policy.tokenizer)
        self._policy, self.vocab_size = policy, self._tokenizer.vocab_size
        self.asked: dict[str, Any] = {}
        self([""])  # before hours of work

    def __call__(self, texts: list[str]) -> Sequence[Document | str]:
        bos, eos = self._policy.bos, self._policy.eos
        return [Document(ids) for ids in self._tokenizer.encode_batch(texts, bos, eos)]


def encoder_of(policy: Policy) -> Encoder:
    if not policy.mask:
        return TextEncoder(policy)
    from ds_llama.data.chat import ChatEncoder

    return ChatEncoder(
        policy.tokenizer, policy.template, form=policy.format, bos=policy.bos, eos=policy.eos
    )


class Encoded(NamedTuple):
    """Documents end to end: `ids` of the shard's type, `sizes` int32, `mask` uint8 or None."""

    ids: npt.NDArray[Any]
    sizes: npt.NDArray[np.int32]
    mask: npt.NDArray[np.uint8] | None


class Splits(NamedTuple):
    """A batch's documents by split; `refused` holds texts by number, and what is wrong."""

    train: Encoded
    validation: Encoded
    refused: list[tuple[int, str]]


def in_validation(text: str, fraction: float) -> bool:
    """Decided by the text alone, so that equal documents never lie on both sides."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2.0**64


def encode(texts: list[str], encoder: Encoder, policy: Policy) -> Splits:
    sides: tuple[list[Document], list[Document]] = [], []
    refused = []
    for number, (text, found) in enumerate(zip(texts, encoder(texts), strict=True)):
        if isinstance(found, str):
            refused.append((number, found))
        else:
            sides[in_validation(text, policy.validation_fraction)].append(found)
    dtype = id_dtype(encoder.vocab_size)
    train, validation = (_joined(side, dtype, policy.mask) for side in sides)
    return Splits(train, validation, refused)


def _joined(documents: list[Document], dtype: np.dtype[Any], masked: bool) -> Encoded:
    sizes = np.array([len(document.ids) for document in documents], dtype=np.int32)
    ids = _concatenated([document.ids for document in documents], dtype)
    if not masked:
        return Encoded(ids, sizes, None)
    masks = [document.mask or () for document in documents]
    return Encoded(ids, sizes, _concatenated(masks, np.dtype(np.uint8)))


def _concatenated(parts: list[Sequence[int]], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    # An array first: without one there is nothing to concatenate.
    return np.concatenate([np.empty(0, dtype), *(np.asarray(part, dtype) for part in parts)])


def encode_all(
    batches: Iterable[Batch], policy: Policy, workers: int
) -> Iterator[tuple[Batch, Splits]]:
    """Each batch with its ids, in the order of the batches, whichever process made them.

    At most `_AHEAD` batches per worker are in flight, so memory does not grow with the corpus.
    """
    if workers <= 1:
        encoder = encoder_of(policy)
        yield from ((batch, encode(batch.texts, encoder, policy)) for batch in batches)
        return
    # Not forked: a fork of a process with threads (a progress bar, torch) may deadlock.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, _start_worker, (policy,))
    try:
        yield from _in_order(pool, batches, workers * _AHEAD)
    except BrokenProcessPool as error:
        raise RunError(
            "a tokenizing process died",
            where=f"one of {workers} workers",
            remedy="look for an out-of-memory kill (`dmesg`), or run with fewer --workers; the "
            "same call goes on where this one ended",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: Executor, batches: Iterable[Batch], ahead: int
) -> Iterator[tuple[Batch, Splits]]:
    waiting: deque[tuple[Batch, Future[Splits]]] = deque()
    for batch in batches:
        with _interrupts_kept():
            waiting.append((batch, pool.submit(_encode_in_worker, batch.texts)))
        if len(waiting) >= ahead:
            first, encoded = waiting.popleft()
            yield first, encoded.result()
    while waiting:
        first, encoded = waiting.popleft()
        yield first, encoded.result()


@contextmanager
def _interrupts_kept() -> Iterator[None]:
    """Ctrl-C reaches the whole process group, and the parent alone decides what it means.

    What is started here inherits the mask, and so never hears of it, not even before its first
    line; for this process it is put off.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker: tuple[Encoder, Policy] | None = None


def _start_worker(policy: Policy) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = (encoder_of(policy), policy)


def _end_with_parent() -> None:
    """A worker waits on a pipe that its fellows hold open too: it would outlive a killed parent."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode_in_worker(texts: list[str]) -> Splits:
    assert _worker is not None
    return encode(texts, *_worker)
