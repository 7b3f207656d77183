"""Documents to ids on several processes, in order."""

from __future__ import annotations

import hashlib
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ds_llama.data.shards import id_dtype
from ds_llama.data.tokenizer import Tokenizer, load_tokenizer
from ds_llama.errors import RunError

_AHEAD = 4


@dataclass(frozen=True)
class Policy:
    """How a document becomes ids, and which split it belongs to."""

    tokenizer: str
    bos: bool
    eos: bool
    validation_fraction: float


class Encoded(NamedTuple):
    """Documents end to end: `ids` of the shard's type, `sizes` int32."""

    ids: npt.NDArray[Any]
    sizes: npt.NDArray[np.int32]


class Splits(NamedTuple):
    train: Encoded
    validation: Encoded


def in_validation(text: str, fraction: float) -> bool:
    """Decided by the text alone, so that equal documents never lie on both sides."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2.0**64


def encode(texts: list[str], tokenizer: Tokenizer, policy: Policy) -> Splits:
    train: list[list[int]] = []
    validation: list[list[int]] = []
    for text in texts:
        side = validation if in_validation(text, policy.validation_fraction) else train
        side.append(tokenizer.encode(text, bos=policy.bos, eos=policy.eos))
    dtype = id_dtype(tokenizer.vocab_size)
    return Splits(_joined(train, dtype), _joined(validation, dtype))


def _joined(documents: list[list[int]], dtype: np.dtype[Any]) -> Encoded:
    sizes = np.array([len(ids) for ids in documents], dtype=np.int32)
    parts = [np.array(ids, dtype=dtype) for ids in documents]
    return Encoded(np.concatenate(parts) if parts else np.empty(0, dtype), sizes)


def encode_all(batches: Iterable[list[str]], policy: Policy, workers: int) -> Iterator[Splits]:
    """Each batch's ids in the order of the batches, whichever process made them.

    At most `_AHEAD` batches per worker are in flight, so memory does not grow with the corpus.
    """
    if workers <= 1:
        tokenizer = load_tokenizer(policy.tokenizer)
        yield from (encode(batch, tokenizer, policy) for batch in batches)
        return
    # Not forked: a fork of a process with threads (a progress bar, torch) may deadlock.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (policy,))
    try:
        yield from _in_order(pool, batches, workers * _AHEAD)
    except BrokenProcessPool as error:
        raise RunError(
            "a tokenizing process died",
            where=f"one of {workers} workers",
            remedy="look for an out-of-memory kill (`dmesg`), or run with fewer --workers",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: Executor, batches: Iterable[list[str]], ahead: int) -> Iterator[Splits]:
    waiting: deque[Future[Splits]] = deque()
    for batch in batches:
        waiting.append(pool.submit(_encode_in_worker, batch))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


_worker: tuple[Tokenizer, Policy] | None = None


def _start_worker(policy: Policy) -> None:
    global _worker
    # Ctrl-C reaches the whole process group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker = (load_tokenizer(policy.tokenizer), policy)


def _encode_in_worker(batch: list[str]) -> Splits:
    assert _worker is not None
    return encode(batch, *_worker)
