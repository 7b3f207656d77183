"""Texts that tokenizers have disagreed about, made the same each time."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator

from tests.unit.data.conftest import sentences

# Of blocks of 256 characters that hold one script alone, the CJK ones, Hangul and private use.
_VAST = [(0x3400, 0xD7A4), (0xE000, 0xF900), (0x17000, 0x18D00), (0x20000, 0x110000)]
_EMOJI = [
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",  # a family
    "\U0001f3f3\ufe0f\u200d\U0001f308",  # a flag of two
    "\U0001f1eb\U0001f1f7\U0001f1ef",  # regional letters, the last alone
    "\U0001f44b\U0001f3fd",  # a skin tone
    "7\ufe0f\u20e3",  # a keycap
    "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # tags: England
]
_BROKEN = [
    b"\xff\xfe a \xc3 b",  # no start byte, a start alone
    b"\xe2\x82 \xf0\x9f\x98 cut",  # characters that end too early
    b"\xc0\xaf\xe0\x80\xaf overlong",
    b"\xed\xa0\xbd\xed\xb8\x80 surrogates",
    b"\xf4\x90\x80\x80 beyond",
    bytes(range(128, 256)),
]


def mixed_texts() -> list[str]:
    """All kinds of text that tokenizers have disagreed about."""
    draw = random.Random(0)
    ranges = [(32, 127), (0xA0, 0x250), (0x400, 0x500), (0x5D0, 0x5F0), (0x600, 0x700)]
    ranges += [(0x900, 0x980), (0x3040, 0x3100), (0x4E00, 0x9FFF), (0x1F300, 0x1F650)]
    scripts = [
        "".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(150)) for _ in range(60)
    ]
    return [
        "hello world",
        "trailing  ",
        "def f(x):\n    if x:\n\t\treturn 1234567890.5\r\n",
        "日本語 中文 한국어 العربية עברית ไทย हिन्दी",
        "😀👩‍👩‍👧‍👦🏳️‍🌈",
        "".join(map(chr, range(1, 32))) + "\x7f",
        "a\x00b",
        "é e\u0301 ﬁ ½ Ⅷ \u00a0\u2028\ufeff\ufffd",
        "model " * 3000,
        "x" * 20000,
        "a" + " " * 333 + "b",
        "-" * 79 + "\n" + "=" * 200,
        "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
        *(raw.decode("utf-8", "replace") for raw in _BROKEN),
        *_EMOJI,
        "\r\n\r\n\t\t x\t \v\f\x85",
        *(f"\n{' ' * n}self.step = {n}" for n in range(70)),
        *scripts,
        *sentences(200, seed=1),
    ]


def every_script() -> Iterator[str]:
    """Every assigned character, of vast blocks each sixteenth: in order, then shuffled among
    spaces, digits and combining marks."""
    draw = random.Random(1)
    for start in range(0, 0x110000, 256):
        if start % 4096 and any(first <= start < end for first, end in _VAST):
            continue
        block = map(chr, range(start, start + 256))
        assigned = [c for c in block if unicodedata.category(c) not in ("Cn", "Cs")]
        if assigned:
            yield "".join(assigned)
            mixed = [*assigned, *draw.choices([" ", "  ", "1", "\u0301", "\u200d", "\n"], k=60)]
            draw.shuffle(mixed)
            yield "".join(mixed)


def one_long_line(characters: int) -> str:
    """Words, code, scripts, emoji and broken bytes, without a line break."""
    draw = random.Random(2)
    parts = [*sentences(300, seed=3), *_EMOJI, *(raw.decode("utf-8", "replace") for raw in _BROKEN)]
    parts += [text.replace("\n", " ") for text in mixed_texts() if len(text) < 400]
    line, length = [], 0
    while length < characters:
        line.append(draw.choice(parts))
        length += len(line[-1]) + 1
    return " ".join(line)[:characters]
