"""What a sentencepiece model says of itself, read from its protobuf by hand.

sentencepiece's Python API tells neither the algorithm nor which pieces are user-defined, and the
classes it ships for this file refuse to load beside another protobuf than they were made with.

    ModelProto      1 pieces, 2 trainer_spec, 3 normalizer_spec
    SentencePiece   1 piece, 2 score, 3 type
    TrainerSpec     3 model_type, 24 treat_whitespace_as_suffix, 35 byte_fallback
    NormalizerSpec  2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces,
                    5 escape_whitespaces

Numbers and defaults are those of sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

_UNITS = 64


class Kind(IntEnum):
    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


class Type(IntEnum):
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    text: str
    score: float
    type: Type


class Model(NamedTuple):
    """`plain`: a text is taken as it is, but for its spaces, which become U+2581."""

    pieces: list[Piece]
    kind: Kind
    byte_fallback: bool
    add_dummy_prefix: bool
    plain: bool


def parse(proto: bytes) -> Model:
    """Of what sentencepiece has loaded: it is not checked again here."""
    trainer, normalizer = _specs(proto)
    spans = _spans(proto, 0, len(proto))
    return Model(
        [_piece(proto[start:end]) for number, start, end in spans if number == 1],
        Kind(_number(trainer, 3, Kind.UNIGRAM)),
        byte_fallback=bool(_number(trainer, 35, 0)),
        add_dummy_prefix=bool(_number(normalizer, 3, 1)),
        plain=_is_plain(trainer, normalizer),
    )


def prefixes_plain_text(proto: bytes) -> bool:
    """`plain and add_dummy_prefix`, without a look at the pieces."""
    trainer, normalizer = _specs(proto)
    return _is_plain(trainer, normalizer) and bool(_number(normalizer, 3, 1))


def _specs(proto: bytes) -> tuple[dict[int, bytes], dict[int, bytes]]:
    fields = _fields(proto)
    return _fields(fields.get(2, b"")), _fields(fields.get(3, b""))


def _is_plain(trainer: dict[int, bytes], normalizer: dict[int, bytes]) -> bool:
    return (
        not normalizer.get(2)
        and not _number(normalizer, 4, 1)
        and bool(_number(normalizer, 5, 1))
        and not _number(trainer, 24, 0)
    )


def _piece(content: bytes) -> Piece:
    fields = _fields(content)
    [score] = struct.unpack("<f", fields.get(2, bytes(4)))
    text = fields.get(1, b"").decode("utf-8", errors="replace")
    return Piece(text, score, Type(_number(fields, 3, Type.NORMAL)))


def with_exact_scores(proto: bytes) -> bytes:
    """A unigram model whose sums of scores do not depend on rounding, nor on who adds them.

    sentencepiece adds scores in float32, Hugging Face in float64. Where two ways through a text
    cost the same (16 spaces and 5, or 5 and 16) rounding decides, and ids differ. So scores become
    multiples of 1/64: sums down to -2^18 are exact in both, about 30 000 tokens. A user-defined
    symbol, to which sentencepiece gives -0.1, becomes a piece that costs nothing.
    """
    changed = bytearray(proto)
    for number, start, end in _spans(proto, 0, len(proto)):
        if number != 1:
            continue
        at = {field: first for field, first, _ in _spans(proto, start, end)}
        [score] = struct.unpack_from("<f", proto, at[2])
        struct.pack_into("<f", changed, at[2], round(score * _UNITS) / _UNITS)
        if 3 in at and changed[at[3]] == Type.USER_DEFINED:
            changed[at[3]] = Type.NORMAL
            struct.pack_into("<f", changed, at[2], 0.0)
    return bytes(changed)


def _fields(content: bytes) -> dict[int, bytes]:
    """Each field's bytes by its number, the last where it is repeated."""
    spans = _spans(content, 0, len(content))
    return {number: content[start:end] for number, start, end in spans}


def _number(fields: dict[int, bytes], number: int, default: int) -> int:
    return _varint(fields[number], 0)[0] if number in fields else default


def _spans(content: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, first and last byte (exclusive) of each field's value."""
    while at < end:
        key, at = _varint(content, at)
        wire, start = key & 7, at
        if wire == 0:
            _, stop = _varint(content, at)
        elif wire == 2:
            size, start = _varint(content, at)
            stop = start + size
        else:
            stop = start + {1: 8, 5: 4}[wire]
        yield key >> 3, start, stop
        at = stop


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
