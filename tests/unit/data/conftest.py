from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from ds_llama.data.shards import Shard, ShardWriter
from ds_llama.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

WORDS = "the model token shard window rank step loss def return import class self 日本 année 12 345"


def sentences(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    words = WORDS.split()
    return [
        " " * draw.choice([0, 4, 8]) + " ".join(draw.choices(words, k=draw.randrange(1, 12)))
        for _ in range(count)
    ]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BPE tokenizer of 420 pieces, trained once."""
    folder = tmp_path_factory.mktemp("tokenizer")
    text = folder / "corpus.txt"
    text.write_text("\n".join(sentences(2000)), "utf-8")
    train_tokenizer([text], folder / "trained", vocab_size=420, threads=1)
    return folder / "trained"


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_folder)


def write_shard(prefix: Path, tokens: int, vocab_size: int = 1 << 20) -> Shard:
    """A shard of one document whose ids count from 0."""
    with ShardWriter(prefix, vocab_size=vocab_size) as writer:
        writer.add(np.arange(tokens))
    return Shard(prefix)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a result; hidden ones are work that goes on, or a lock."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}
