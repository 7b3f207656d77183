"""One record to ids and their mask: 1 where the token is learnt.

ids are what the model is asked with at inference, the answers between: those of transformers'
`apply_chat_template` for a chat, those that `ds-llama eval` scores for a row. A token is learnt if
any of its characters belongs to an answer: where an answer's first letters have melted with the
prompt's last into one token, nothing else could learn them.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from ds_llama.data.chat.pipeline import Pipeline, Place, marker
from ds_llama.data.chat.records import BadRecord, Chat, Text, read_record
from ds_llama.data.chat.spans import Span, render
from ds_llama.data.chat.template import Template, find_template, shipped_templates
from ds_llama.data.encoding import Document
from ds_llama.data.rows import Row, encode_pair, encode_prompt
from ds_llama.data.tokenizer import load_tokenizer
from ds_llama.errors import CallError, DataError

_PROBE = Chat(
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], [False, True]
)


class ChatEncoder:
    """`template`: a shipped name or a file; the tokenizer's own where it is None.

    `form`: one of `records.FORMATS`. BOS and EOS stand around completions and rows (BOS if the
    tokenizer has one); in a chat it is the template that writes them. `vocab_size` counts the
    tokens that are added to the vocabulary too.
    Raises DataError for a template by which no answer would end.
    """

    def __init__(
        self,
        tokenizer: str | os.PathLike[str],
        template: str | None = None,
        *,
        form: str = "chat",
        bos: bool = True,
        eos: bool = True,
    ) -> None:
        self._tokenizer = load_tokenizer(tokenizer)
        self.form, self._bos, self._eos = form, bos, eos
        self.vocab_size = self._tokenizer.vocab_size
        wanted = form != "rows"
        found = find_template(template, self._tokenizer.path.parent) if wanted else None
        self._chats = _Chats(Pipeline(self._tokenizer), *found) if found else None
        self.asked: dict[str, Any] = {"chat_sha256": self._chats and self._chats.sha256}
        if self._chats:
            self.vocab_size = max(self.vocab_size, self._chats.vocab_size)

    def __call__(self, texts: list[str]) -> list[Document | str]:
        """Of each record, as JSON, its document, or why it is left out."""
        return [self._document_or_problem(json.loads(text)) for text in texts]

    def _document_or_problem(self, record: Mapping[str, Any]) -> Document | str:
        try:
            return self.encode(record)
        except BadRecord as bad:
            return str(bad)

    def encode(self, record: Mapping[str, Any]) -> Document:
        """Raises BadRecord with the reason for a record to leave out."""
        found = read_record(record, self.form)
        if isinstance(found, Chat):
            return self._require_chats().encode(found)
        if isinstance(found, Row):
            answer = found.answers[0]
            return self._joined(*encode_pair(self._tokenizer, found, answer, bos=self._bos))
        return self._completed(found)

    def _completed(self, text: Text) -> Document:
        """Both together; the prompt's tokens are those that it has in common with itself alone."""
        whole = encode_prompt(self._tokenizer, text.prompt + text.completion, bos=self._bos)
        alone = encode_prompt(self._tokenizer, text.prompt, bos=self._bos)
        pairs = zip(whole, alone, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(whole), len(alone)))
        return self._joined(whole[:same], whole[same:])

    def _joined(self, prompt: list[int], answer: list[int]) -> Document:
        end = self._tokenizer.encode("", eos=True) if self._eos else []
        learnt = len(answer) + len(end)
        return Document([*prompt, *answer, *end], [0] * len(prompt) + [1] * learnt)

    def _require_chats(self) -> _Chats:
        if self._chats is None:
            raise CallError(
                "the records are chats, and the tokenizer has no chat template",
                where=str(self._tokenizer.path.parent),
                remedy="give --chat-template with a jinja file or one of "
                + ", ".join(shipped_templates()),
            )
        return self._chats


class _Chats:
    """Conversations by one template and one pipeline."""

    def __init__(self, pipeline: Pipeline, source: str, where: str) -> None:
        self._pipeline = pipeline
        self._template = Template(source, where, pipeline.names)
        self._controls = tuple(pipeline.control_tokens(self._template.literal_text))
        self._mark = marker(self._controls)
        self.vocab_size = pipeline.vocab_size
        self.sha256 = hashlib.sha256(f"{source}\0{pipeline.definition}".encode()).hexdigest()
        self._require_an_end(where)

    def encode(self, chat: Chat) -> Document:
        marked = Chat(self._mark(chat.messages), chat.learnt, self._mark(chat.tools))
        text, spans = render(marked, self._template, self._ends_turn)
        tokens = self._pipeline.encode(text)
        return Document(tokens.ids, _mask(tokens.places, spans))

    def _ends_turn(self, text: str) -> bool:
        return text.endswith(self._controls)

    def _require_an_end(self, where: str) -> None:
        try:
            text, spans = render(_PROBE, self._template, self._ends_turn)
        except BadRecord:  # it asks for more than this chat has, or shows less
            return
        if not all(self._ends_turn(text[start:end].rstrip()) for start, end in spans):
            raise DataError(
                "an answer ends with no control token of the tokenizer, so that a model which "
                f"learns this would not stop: {text[spans[0][0] :]!r}",
                where=where,
                remedy="end the assistant's turns with {{ eos_token }}, or use a tokenizer that "
                "has the template's control tokens (`ds-llama data tokenizer --control-symbol`)",
            )


def _mask(places: Sequence[Place], spans: Sequence[Span]) -> list[int]:
    """1 for a token with a character in a span, or without one that stands in a span."""
    mask = [0] * len(places)
    for start, end in spans:
        first = bisect_left(places, start, key=lambda place: max(place[0], place[1] - 1))
        behind = bisect_left(places, end, key=lambda place: place[0])
        mask[first:behind] = [1] * (behind - first)
    return mask
