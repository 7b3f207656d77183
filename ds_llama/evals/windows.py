"""Text or a token shard as windows that a model sees, each token predicted once."""

from __future__ import annotations

import codecs
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ds_llama.data.masks import open_mask
from ds_llama.data.shards import Shard, paths_of
from ds_llama.data.tokenizer import Tokenizer
from ds_llama.errors import CallError, DataError

_IGNORED = -100

Ids = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Corpus:
    """One stream of token ids. `utf8_bytes`: of the text that they are, None when not known.

    `mask`: 1 for each token that counts, where not all of them do (`data/masks.py`).
    """

    path: str
    tokens: Ids
    utf8_bytes: int | None
    mask: Ids | None = None


class Strided:
    """Windows of `length` tokens, `stride` apart; a token is predicted in the first that has it.

        tokens    0 1 2 3 4 5 6 7 8 9        length 6, stride 3
        window 0  0 1 2 3 4 5                predicts 1 2 3 4 5
        window 1        3 4 5 6 7 8          predicts 6 7 8, having seen 3 4 5
        window 2              6 7 8 9 - -    predicts 9

    The loop of https://huggingface.co/docs/transformers/perplexity, but for the weight of a window
    in the mean: here the tokens that it predicts, there one less, also where the first token is one
    of the overlap and counts for nothing already. A stride of `length - 1`, the default, predicts
    every token but the first with the fewest windows; at `length` each window's first is lost.
    Items are (ids, labels), int64 (T,) both, -100 where nothing is predicted; T is `length`, or
    all tokens if those are fewer. Raises CallError for a stride out of range, DataError for fewer
    than two tokens.
    """

    def __init__(self, corpus: Corpus, length: int, stride: int | None = None) -> None:
        self.corpus, self.stride = corpus, length - 1 if stride is None else stride
        if not 1 <= self.stride <= length:
            raise CallError(
                f"a stride of {stride} does not fit windows of {length} tokens",
                where="--stride",
                remedy=f"give 1 to {length}: tokens beyond the window would be passed over",
            )
        if len(corpus.tokens) < 2:
            raise DataError(
                f"the data has {len(corpus.tokens)} tokens, and nothing to predict",
                where=corpus.path,
                remedy="give text or a shard of two tokens or more",
            )
        self.length = min(length, len(corpus.tokens))

    def __len__(self) -> int:
        return 1 + math.ceil((len(self.corpus.tokens) - self.length) / self.stride)

    def __getitem__(self, index: int) -> tuple[Ids, Ids]:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        start = index * self.stride
        held = self.corpus.tokens[start : start + self.length].astype(np.int64)
        seen = self.length - self.stride if index else 0
        ids = np.zeros(self.length, dtype=np.int64)
        labels = np.full(self.length, _IGNORED, dtype=np.int64)
        ids[: len(held)] = held
        labels[seen : len(held)] = held[seen:]
        if self.corpus.mask is not None:
            labels[: len(held)][self.corpus.mask[start : start + self.length] == 0] = _IGNORED
        return ids, labels

    def __repr__(self) -> str:
        return f"{self.corpus.path} in windows of {self.length}, stride {self.stride}"


def is_shard(data: str | Path) -> bool:
    """Whether `data` names a token shard: its prefix, or either of its files."""
    return paths_of(data)[1].is_file()


def read_shard(prefix: str | Path, tokenizer: Tokenizer | None) -> Corpus:
    """A shard's sequences end to end; bytes by decoding them, where `tokenizer` can be theirs.

    Of a shard with a mask what is learnt counts, and no bytes.
    """
    shard = Shard(prefix)
    tokens, mask = shard.read(0, shard.num_tokens), open_mask(shard)
    if mask is not None:
        return Corpus(str(prefix), tokens, None, mask.read(0, mask.num_tokens))
    if tokenizer is None or shard.largest_id() >= tokenizer.vocab_size:
        return Corpus(str(prefix), tokens, None)
    texts = (tokenizer.decode(ids.tolist()) for ids in shard)
    return Corpus(str(prefix), tokens, sum(len(text.encode()) for text in texts))


def read_text(path: str | Path, tokenizer: Tokenizer) -> Corpus:
    """A file of UTF-8, tokenized whole, behind BOS where the tokenizer has one.

    Raises CallError when there is no such file, DataError when it is empty or not UTF-8.
    """
    raw = read_bytes(Path(path))
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"the file is not UTF-8: byte {error.start} is 0x{raw[error.start]:02x}",
            where=str(path),
            remedy="give text in UTF-8; a token shard is named by its path without .bin",
        ) from error
    ids = tokenizer.encode(text, bos=tokenizer.bos_id is not None)
    return Corpus(str(path), np.asarray(ids, dtype=np.int64), len(raw))


def read_bytes(path: Path) -> bytes:
    """What is in a file that has to be there and hold something other than white space.

    Without the mark that some editors put before UTF-8.
    """
    if not path.is_file():
        raise CallError(
            "this is a folder" if path.is_dir() else "there is no such file",
            where=str(path),
            remedy="give --data with a token shard's prefix, a text file, or a .jsonl of rows",
        )
    raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    if not raw.strip():
        raise DataError("the file is empty", where=str(path), remedy="give one that holds text")
    return raw
