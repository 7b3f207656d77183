"""Text in, text out: prompts encoded, continued, and decoded as they come."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from ds_llama.config.model import LlamaConfig
from ds_llama.errors import CallError
from ds_llama.evals.generate import generate
from ds_llama.evals.sampling import Sampling
from ds_llama.evals.stream import TextStream

Finish = Literal["eos", "stop", "length"]
# Prompts that run at once: their keys and values are what fills the memory.
BATCH_SIZE = 16


class Coder(Protocol):
    """Text to a prompt's ids and back. `eos`: ids that end a text."""

    vocab_size: int
    eos: Collection[int]

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


class Completion(NamedTuple):
    """What was written after a prompt.

    text: without the stop string that ended it. tokens: all that were drawn, that string's and the
    end-of-text token too. finish: what ended it; "length": as many tokens as allowed, or as the
    model has positions for.
    """

    text: str
    tokens: list[int]
    finish: Finish


def complete(
    model: Any,
    config: LlamaConfig,
    coder: Coder,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Sequence[str] = (),
    batch_size: int = BATCH_SIZE,
    on_text: Callable[[int, str, bool], None] | None = None,
) -> list[Completion]:
    """Go on from each prompt until an end-of-text token, a stop string or a limit.

    on_text: called with (index of the prompt, next piece of its text, whether it is the last).
    Raises CallError for an empty stop string and for a prompt without tokens or beyond the model's
    positions, else what `generate` raises.
    """
    if not all(stop):
        raise CallError(
            "a stop string is empty", where="--stop", remedy="give one character or more"
        )
    encoded = [coder.encode(prompt) for prompt in prompts]
    room = [positions(config) - len(ids) for ids in encoded]
    _check_room(encoded, room, positions(config))
    writers = [
        _Writer(
            *(row, TextStream(coder.decode, ids, stop), coder.eos),
            *(min(max_new_tokens, left), on_text),
        )
        for row, (ids, left) in enumerate(zip(encoded, room, strict=True))
    ]
    tokens = generate(
        model,
        encoded,
        max_new_tokens=min(max_new_tokens, max(room, default=0)),
        sampling=sampling,
        eos=coder.eos,
        vocab_size=coder.vocab_size,
        batch_size=batch_size,
        on_token=lambda row, token: writers[row].hear(token),
    )
    return [writer.completion(new) for writer, new in zip(writers, tokens, strict=True)]


def positions(config: LlamaConfig) -> int:
    """Tokens that the model takes, prompt and text together.

    transformers goes on beyond them, on positions that the model has never seen.
    """
    rope = config.rope_parameters
    # these two state the length before it is stretched, the others the length after
    stretched = rope.rope_type in ("linear", "dynamic")
    return int(config.max_position_embeddings * ((rope.factor or 1) if stretched else 1))


class _Writer:
    """One prompt's text while it is being written."""

    def __init__(
        self,
        row: int,
        stream: TextStream,
        eos: Collection[int],
        limit: int,
        on_text: Callable[[int, str, bool], None] | None,
    ) -> None:
        self.row, self.stream, self.eos, self.limit = row, stream, eos, limit
        self.on_text = on_text
        self.pieces: list[str] = []
        self.heard = 0
        self.finish: Finish | None = None

    def hear(self, token: int) -> bool:
        """Take the next token; whether it is the last."""
        self.heard += 1
        if token in self.eos:
            self._end("eos")
            return True
        self._say(self.stream.push(token), last=False)
        if self.stream.stopped or self.heard == self.limit:
            self._end("length")
        return self.finish is not None

    def completion(self, tokens: list[int]) -> Completion:
        if self.finish is None:  # no tokens were asked for
            self._end("length")
        return Completion("".join(self.pieces), tokens, self.finish or "length")

    def _end(self, finish: Finish) -> None:
        rest = self.stream.close()
        self.finish = "stop" if self.stream.stopped else finish
        self._say(rest, last=True)

    def _say(self, piece: str, *, last: bool) -> None:
        self.pieces.append(piece)
        if self.on_text is not None and (piece or last):
            self.on_text(self.row, piece, last)


def _check_room(encoded: Sequence[Sequence[int]], room: Sequence[int], positions: int) -> None:
    least = min(room, default=1)
    if least < 1:
        row = room.index(least)
        raise CallError(
            f"a prompt has {len(encoded[row])} tokens, which leaves none of the model's "
            f"{positions} positions to go on from",
            where=f"prompt {row + 1}",
            remedy="shorten it, or take a model with a greater max_position_embeddings",
        )
