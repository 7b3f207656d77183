"""`ds-llama generate --chat` without prompts: a conversation, a line of stdin a message."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ds_llama.cli.screen import Screen, screened

if TYPE_CHECKING:
    from ds_llama.evals.coder import ChatCoder
    from ds_llama.evals.complete import Completion
    from ds_llama.evals.load import Loaded
    from ds_llama.evals.sampling import Sampling


def converse(
    loaded: Loaded, coder: ChatCoder, sampling: Sampling, *, quiet: bool, **settings: Any
) -> tuple[list[str], list[Completion], float]:
    """Answer each message after those before it, to the end of standard input.

    quiet: nothing is shown. Returns the messages, the answers, and the seconds that these took.
    """
    asked: list[str] = []
    written: list[Completion] = []
    seconds = 0.0
    for message in messages(quiet=quiet):
        if asked and not (quiet or sys.stdin.isatty()):
            print()
        start = time.perf_counter()
        _make_room(loaded, coder, message, settings["max_new_tokens"])
        # each message draws as a prompt in its place would, and not what the one before it drew
        drawn = replace(sampling, seed=sampling.seeds(len(asked) + 1)[-1])
        screen = None if quiet else Screen([""])
        [answer] = screened(screen, loaded, coder, [message], sampling=drawn, **settings)
        coder.remember(message, answer.text)
        asked.append(message)
        written.append(answer)
        seconds += time.perf_counter() - start
    return asked, written, seconds


def messages(*, quiet: bool) -> Iterator[str]:
    """Lines of standard input that say something; on a terminal each is asked for, to Ctrl-D."""
    if not sys.stdin.isatty():
        yield from filter(str.strip, map(_utf8, sys.stdin.buffer))
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  input() edits lines by it
    shown = not quiet and sys.stdout.isatty()
    while True:
        if not shown:  # what is on stdout may be for another program
            print("> ", end="", file=sys.stderr, flush=True)
        try:
            line = input("> " if shown else "")
        except (EOFError, KeyboardInterrupt) as end:
            print(file=sys.stdout if shown else sys.stderr)
            if isinstance(end, KeyboardInterrupt):
                raise
            return
        if line.strip():
            yield _utf8(line.encode(errors="surrogateescape"))


def _utf8(raw: bytes) -> str:
    from ds_llama.errors import CallError

    try:
        return raw.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise CallError(
            f"a message is not UTF-8: {raw!r}", where="standard input", remedy="give it in UTF-8"
        ) from None


def _make_room(loaded: Loaded, coder: ChatCoder, message: str, new_tokens: int) -> None:
    """Forget what is oldest while the model has no positions left for an answer."""
    from ds_llama.evals.complete import positions

    room = positions(loaded.config)
    forgotten = False
    while len(coder.encode(message)) + max(new_tokens, 1) > room and coder.forget():
        forgotten = True
    if forgotten:
        print(
            f"note: the oldest messages are forgotten: the model has {room} positions",
            file=sys.stderr,
        )
