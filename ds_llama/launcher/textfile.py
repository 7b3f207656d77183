"""Reading what a person wrote, and nobody has vouched for: hostfiles and environment files."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from ds_llama.errors import CallError, ConfigError, ConfigErrors

MOST_BYTES = 2**20
MOST_ERRORS = 20
_MOST_CHARACTERS = 4096  # of one line
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: Path | str, kind: str, instead: str) -> str:
    """The file's text; bytes that are not UTF-8 become surrogates, which `lines` refuses.

    `kind` is what the messages call the file, `instead` what to give when it cannot be read.
    Raises CallError for no file, a device or a pipe, and for more than 1 MiB.
    """
    try:
        # A pipe without a writer would hang the open itself.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            data = file.read(MOST_BYTES + 1) if regular else b""
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise CallError(
            f"the {kind} cannot be read: {why}", where=str(path), remedy=instead
        ) from None
    if not regular:
        raise CallError(f"the {kind} is not a regular file", where=str(path), remedy=instead)
    if len(data) > MOST_BYTES:
        raise CallError(f"the {kind} is larger than 1 MiB", where=str(path), remedy=instead)
    if data.startswith(_UTF16):
        raise ConfigErrors(
            [
                ConfigError(
                    f"the {kind} is UTF-16",
                    where=f"{path}:1:1",
                    remedy="save it as UTF-8, for instance with iconv -f UTF-16 -t UTF-8",
                )
            ]
        )
    return data.decode("utf-8", "surrogateescape")


def lines(text: str, path: str) -> Iterator[tuple[str, str, ConfigError | None]]:
    """Each line without its end, `path:number`, and what is wrong with its characters, if any.

    A line ends in LF or CRLF. Other control characters than tab are wrong everywhere, comments
    included: Python's text mode, in which DeepSpeed reads, ends a line at a lone CR as well.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        line, where = line.removesuffix("\r"), f"{path}:{number}"
        yield line, where, _wrong_characters(line, where)


def _wrong_characters(line: str, where: str) -> ConfigError | None:
    if len(line) > _MOST_CHARACTERS:
        return ConfigError(
            f"a line of {len(line)} characters",
            where=f"{where}:{_MOST_CHARACTERS + 1}",
            remedy=f"a line has at most {_MOST_CHARACTERS}; is this the right file?",
        )
    for column, character in enumerate(line, start=1):
        if character == "\ufeff" and column == 1:
            return ConfigError(
                "a byte order mark, which is not part of a name",
                where=f"{where}:{column}",
                remedy="save the file as UTF-8 without a byte order mark",
            )
        if character != "\t" and unicodedata.category(character) in ("Cc", "Cs"):
            return ConfigError(
                f"{describe(character)} does not belong into a text",
                where=f"{where}:{column}",
                remedy="take it out",
            )
    return None


def describe(character: str) -> str:
    """A character as a message shows it: safe on a terminal, and told from its look-alikes."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape of one byte
        return f"the byte 0x{code - 0xDC00:02x}, which is not UTF-8,"
    name = unicodedata.name(character, "")
    return f"U+{code:04X}{f' {name}' if name else ''}"


def capped(errors: list[ConfigError], path: str) -> ConfigErrors:
    """All of `errors`, or the first 20 and how many more there are."""
    more = len(errors) - MOST_ERRORS
    if more > 0:
        rest = ConfigError(
            f"{more} more lines are wrong", where=path, remedy="is this the right file?"
        )
        errors = [*errors[:MOST_ERRORS], rest]
    return ConfigErrors(errors)
