"""Text out of tokens as they come: whole characters only, up to the first stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# What tokenizers write for bytes that are not, or not yet, a character.
_INCOMPLETE = "\ufffd"


class TextStream:
    """The text that tokens add to a context, piece by piece; the pieces joined are the text.

        tokens     ▁a   b \\xe2   \\x82   \\xac   <  stop  >
        pieces     " a" "b"  ""     ""    "€"   "" ""   ""        with the stop string "<stop>"

    decode: ids to text. A token is decoded behind those of the piece before it, for a tokenizer's
    first token may lose its space and bytes may be characters only together; never behind all of
    them, which would make a long text quadratic. context: the prompt's ids. stop: the text ends
    before whichever of these is complete first, wherever tokens begin and end; what could still
    become one is held back.
    """

    def __init__(
        self, decode: Callable[[list[int]], str], context: Sequence[int], stop: Sequence[str] = ()
    ) -> None:
        self._decode, self._stop = decode, stop
        self._ids, self._known = list(context), decode(list(context))
        self._context = len(self._ids)
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is certain now, and was not before."""
        self._ids.append(token)
        text = self._decode(self._ids)[len(self._known) :]
        if not text or text.endswith(_INCOMPLETE):
            return ""
        self._ids = self._ids[self._context :]
        self._known, self._context = self._decode(self._ids), len(self._ids)
        return self._take(text, at_end=False)

    def close(self) -> str:
        """The rest, when no more tokens come."""
        return self._take(self._decode(self._ids)[len(self._known) :], at_end=True)

    def _take(self, text: str, *, at_end: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        end = first_stop(text, self._stop)
        self.stopped = end is not None
        if end is None:
            end = len(text) if at_end else len(text) - _beginning(text, self._stop)
        self._held = "" if self.stopped else text[end:]
        return text[:end]


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the stop string begins that is complete first, the longest of several; or None."""
    found = [(at + len(s), at) for s in stop if (at := text.find(s)) >= 0]
    return min(found)[1] if found else None


def _beginning(text: str, stop: Sequence[str]) -> int:
    """Characters at the end of `text` that a stop string begins with, at most."""
    return max(
        (n for s in stop for n in range(1, min(len(s), len(text) + 1)) if text.endswith(s[:n])),
        default=0,
    )
