"""Llama 3's `tokenizer.model`: a tiktoken list, as a pipeline of `tokenizers` with equal ids.

    IQ== 0        a token's bytes in base64, and its rank, which is its id too

A text is split by a pattern. A piece that is a token is taken whole; in another the two neighbours
are merged whose union has the lowest rank, until no two are a token. The list says nothing of the
control tokens: those are Meta's 256 beyond the last rank, by the names that they have since 3.1
(in 3 some were reserved still; their ids are the same).
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

# `pat_str` of Meta's tokenizer.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BOS, _EOS = "<|begin_of_text|>", "<|end_of_text|>"
_NAMED = {
    0: _BOS,
    1: _EOS,
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
_RESERVED = iter(range(256))
CONTROL = [_NAMED.get(i) or f"<|reserved_special_token_{next(_RESERVED)}|>" for i in range(256)]
CONFIG: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": _BOS,
    "eos_token": _EOS,
    "model_input_names": ["input_ids", "attention_mask"],
    "clean_up_tokenization_spaces": False,
}


def is_tiktoken(path: Path) -> bool:
    """Whether a file is such a list, which has sentencepiece's file name."""
    with path.open("rb") as file:
        token, _, rank = file.readline(4096).strip().partition(b" ")
    return bool(token) and rank.isdigit()


def pipeline(path: Path) -> Any:
    """The `tokenizers.Tokenizer` of a list. Raises ValueError for what is wrong with it."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE

    ranks = _ranks(path.read_bytes())
    letters = _letters()
    vocab = {_spelled(token, letters): rank for token, rank in ranks.items()}
    merges = [(_spelled(a, letters), _spelled(b, letters)) for a, b in _merges(ranks)]
    made = Tokenizer(BPE(vocab=vocab, merges=merges, ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in CONTROL])
    made.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{_BOS} $A",
                pair=f"{_BOS} $A {_BOS}:1 $B:1",
                special_tokens=[(_BOS, len(ranks))],
            ),
        ]
    )
    return made


def _ranks(content: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        token, _, rank = line.partition(b" ")
        try:
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(f"line {number} is no token in base64 and its rank") from None
    if sorted(ranks.values()) != list(range(content.count(b"\n") + (content[-1:] != b"\n"))):
        raise ValueError("a token or a rank is there twice, or is left out")
    lacking = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if lacking:
        raise ValueError(f"byte {lacking[0]:#04x} is no token: the list is not whole")
    return ranks


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Each way to cut a token in two tokens, by its rank."""
    return [
        (left, right)
        for token in sorted(ranks, key=ranks.__getitem__)
        for _, left, right in sorted(
            ((ranks[a], ranks[b]), a, b)
            for a, b in ((token[:k], token[k:]) for k in range(1, len(token)))
            if a in ranks and b in ranks
        )
    ]


def _letters() -> list[str]:
    """GPT-2's letter for each byte: printable ones stand for themselves (`ByteLevel`)."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (byte for byte in range(256) if byte not in plain)
    moved = {byte: chr(256 + place) for place, byte in enumerate(others)}
    return [moved.get(byte) or chr(byte) for byte in range(256)]


def _spelled(token: bytes, letters: list[str]) -> str:
    return "".join(letters[byte] for byte in token)
