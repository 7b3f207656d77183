"""A rendered chat to ids, equal to those of transformers' `apply_chat_template`, with their places.

The template's control tokens become ids. The same characters inside a message stay characters, as
with `sanitize_control_tokens`: no text can end a turn or begin another.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ds_llama.data.chat.records import BadRecord
from ds_llama.data.chat.template import BEGIN, END
from ds_llama.data.fingerprint import read_json
from ds_llama.data.tokenizer import Tokenizer
from ds_llama.errors import DataError

_CONFIG = "tokenizer_config.json"
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
_LLAMA_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
# Private-use characters around a message's text that looks like a control token; transformers' own.
_TEXT, _TEXT_END = "\U000f0000", "\U000f0001"
_MARKS = f"{_TEXT}{_TEXT_END}{BEGIN}{END}"


Place = tuple[int, int]


class Tokens(NamedTuple):
    """`places`: of each id its characters in the rendered chat, from the first to behind the last;
    in order, since neighbours may share a character and none steps back."""

    ids: list[int]
    places: list[Place]


class Pipeline:
    """The `tokenizers` pipeline that transformers makes of a tokenizer's files.

    `names`: the special tokens by the names that templates know. Raises DataError for a tokenizer
    that has no `tokenizer.json` and cannot be written as one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        folder = tokenizer.path.parent
        if (folder / "tokenizer.json").is_file():
            self._read(folder)
        else:
            with tempfile.TemporaryDirectory() as written:
                tokenizer.save(written)
                self._read(Path(written), str(tokenizer.path))

    def _read(self, folder: Path, where: str | None = None) -> None:
        import tokenizers

        file = folder / "tokenizer.json"
        try:
            self._model: Any = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises a bare Exception for every broken file
            raise DataError(
                f"a chat needs a tokenizer.json, and this is none that can be read: {error}",
                where=where or str(file),
                remedy="save the tokenizer once with transformers (save_pretrained) and give that "
                "folder",
            ) from error
        self._model.no_truncation()
        self._model.no_padding()
        # It would trim white space off the places of tokens, and adds nothing that is wanted here.
        self._model.post_processor = tokenizers.processors.Sequence([])
        config = {**read_json(folder / "special_tokens_map.json"), **read_json(folder / _CONFIG)}
        self.names = {name: text for name in _NAMES if (text := _content(config.get(name)))}
        if _is_rebuilt(config, self._model):
            self.names = {
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
            } | self.names
            _rebuild(self._model, legacy=bool(config.get("legacy", False)))
        self._add(config)
        self.vocab_size: int = max(self._model.get_vocab(with_added_tokens=True).values()) + 1
        added = self._model.get_added_tokens_decoder().values()
        self.added: list[str] = [token.content for token in added]
        self._special = {token.content for token in added if token.special}
        either = "|".join(_longest_first(self.added)) or "(?!)"
        self._marks = re.compile(f"{_TEXT}({either}){_TEXT_END}|[{_TEXT}{_TEXT_END}]")
        self._newline: list[int] = self._encode("\n").ids

    def _add(self, config: dict[str, Any]) -> None:
        """Tokens that the config names and `tokenizer.json` does not, as transformers does."""
        from tokenizers import AddedToken

        there = {token.content for token in self._model.get_added_tokens_decoder().values()}
        listed = (config.get("added_tokens_decoder") or {}).items()
        for _, entry in sorted(listed, key=lambda item: int(item[0])):
            if entry["content"] not in there:
                self._model.add_tokens([AddedToken(**entry)])
        absent = [text for text in self.names.values() if text not in there]
        self._model.add_special_tokens([AddedToken(text, special=True) for text in absent])

    @property
    def definition(self) -> str:
        """All that its ids depend on."""
        text: str = self._model.to_str()
        return text

    def control_tokens(self, literal_text: str) -> list[str]:
        """The special tokens, and the other added ones that a template writes."""
        return [
            text
            for text in self.added
            if text in self._special or (text in literal_text and not text.isspace())
        ]

    def encode(self, chat: str) -> Tokens:
        """A chat whose messages went through `marker`.

        Pieces are what transformers' `encode_marked_chat` makes of it: a piece within the chat is
        read behind a newline, whose ids go again, so that no space is put before it.
        """
        tokens = Tokens([], [])
        for piece, start, as_text in self._pieces(chat):
            if as_text:
                found = self._as_text(piece, start)
            elif start == 0:
                found = _placed(self._encode(piece), 0, 0)
            else:
                found = self._within(piece, start)
            tokens.ids.extend(found.ids)
            tokens.places.extend(found.places)
        return tokens

    def _pieces(self, chat: str) -> list[tuple[str, int, bool]]:
        """(text, where it starts, whether it is a message's control token); a stray mark parts."""
        found, at = [], 0
        for mark in self._marks.finditer(chat):
            found.append((chat[at : mark.start()], at, False))
            if mark[1]:
                found.append((mark[1], mark.start() + 1, True))
            at = mark.end()
        found.append((chat[at:], at, False))
        return [piece for piece in found if piece[0]]

    def _encode(self, text: str) -> Any:
        return self._model.encode(text, add_special_tokens=False)

    def _within(self, piece: str, start: int) -> Tokens:
        behind, count = self._encode("\n" + piece), len(self._newline)
        if behind.ids[:count] == self._newline:
            return _placed(behind, start - 1, count)
        return _placed(self._encode(piece), start, 0)

    def _as_text(self, piece: str, start: int) -> Tokens:
        ids, count = self._plain("\n" + piece), len(self._newline)
        ids = ids[count:] if ids[:count] == self._newline else self._plain(piece)
        if self._model.token_to_id(piece) in ids:
            raise BadRecord(f"text that can only be read as a control token: {piece!r}")
        return Tokens(ids, [(start, start + len(piece))] * len(ids))

    def _plain(self, text: str) -> list[int]:
        """Without any added token: the pipeline's parts by hand."""
        if self._model.normalizer is not None:
            text = self._model.normalizer.normalize_str(text)
        words = [text]
        if self._model.pre_tokenizer is not None:
            words = [word for word, _ in self._model.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for word in words for token in self._model.model.tokenize(word)]


def marker(control_tokens: Sequence[str]) -> Any:
    """A function that marks control tokens in every string of a message, for `Pipeline.encode`."""
    pattern = re.compile("|".join(_longest_first(control_tokens)) or "(?!)")

    def mark(value: Any) -> Any:
        if isinstance(value, str):
            bare = value.translate(_NO_MARKS)
            return pattern.sub(f"{_TEXT}\\g<0>{_TEXT_END}", bare)
        if isinstance(value, dict):
            return {key: mark(item) for key, item in value.items()}
        return [mark(item) for item in value] if isinstance(value, list) else value

    return mark


_NO_MARKS = dict.fromkeys(map(ord, _MARKS))


def _longest_first(texts: Sequence[str]) -> list[str]:
    return [re.escape(text) for text in sorted(texts, key=len, reverse=True)]


def _placed(encoding: Any, shift: int, skip: int) -> Tokens:
    places = encoding.offsets
    if shift:
        places = [(start + shift, end + shift) for start, end in places]
    return Tokens(encoding.ids[skip:], places[skip:])


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _is_rebuilt(config: dict[str, Any], model: Any) -> bool:
    """Whether transformers takes only vocabulary and merges of this `tokenizer.json`."""
    kind = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    return kind == "LlamaTokenizer" and '"ByteLevel"' not in _parts(model)


def _parts(model: Any) -> str:
    return f"{model.normalizer} {model.pre_tokenizer} {model.decoder}"


def _rebuild(model: Any, *, legacy: bool) -> None:
    """As its `LlamaTokenizer` does (`models/llama/tokenization_llama.py`)."""
    from tokenizers import pre_tokenizers

    model.normalizer = None
    model.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="\u2581", prepend_scheme="always" if legacy else "first", split=False
    )
