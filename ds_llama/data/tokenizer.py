"""Text to ids and back, for a `tokenizer.model`, sentencepiece's or Llama 3's, or `tokenizer.json`.

Neither transformers nor torch is imported: `tokenizer.json` is read by the `tokenizers` library
itself, so that a worker process starts in a fraction of a second.
"""

from __future__ import annotations

import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ds_llama.data import tokenizer_tiktoken as tiktoken
from ds_llama.data.fingerprint import read_json, sha256_of, write_json
from ds_llama.data.tokenizer_json import write_transformers_files
from ds_llama.data.tokenizer_proto import prefixes_plain_text
from ds_llama.data.tokenizer_training import train_tokenizer
from ds_llama.errors import CallError, DataError

if TYPE_CHECKING:
    import sentencepiece

__all__ = ["Tokenizer", "load_tokenizer", "train_tokenizer"]

_COMPANIONS = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


_PART_CHARACTERS = 4096
# One space, alone: in a run of them, pieces may begin anywhere.
_SPACE = re.compile("(?<=[^\\s\u2581]) (?=[^\\s\u2581])")
_INNER_SPACE = re.compile("[^\u2581]\u2581")


class Tokenizer(Protocol):
    """Text is text: `<s>` in a document becomes characters, never the control token."""

    path: Path
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None

    @property
    def sha256(self) -> str: ...
    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]: ...
    def encode_batch(self, texts: list[str], bos: bool, eos: bool) -> Sequence[Sequence[int]]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def save(self, folder: str | os.PathLike[str]) -> None: ...


class _FileTokenizer(ABC):
    """What both kinds share: `path` is the file that defines the ids."""

    path: Path
    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None

    @property
    def sha256(self) -> str:
        return sha256_of(self.path)

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        ids = self._encode(text)
        if bos:
            ids.insert(0, self._special("BOS", self.bos_id))
        if eos:
            ids.append(self._special("EOS", self.eos_id))
        return ids

    def encode_batch(self, texts: list[str], bos: bool, eos: bool) -> Sequence[Sequence[int]]:
        """As `encode` of each; arrays of int32 where they cost less."""
        return [self.encode(text, bos, eos) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        plain = [int(i) for i in ids]
        beyond = [i for i in plain if not 0 <= i < self.vocab_size]
        if beyond:
            raise DataError(
                f"id {beyond[0]} is not in the tokenizer's vocabulary of {self.vocab_size}",
                where=str(self.path),
                remedy="use the tokenizer that the ids were made with",
            )
        return self._decode(plain)

    @abstractmethod
    def _encode(self, text: str) -> list[int]: ...

    @abstractmethod
    def _decode(self, ids: list[int]) -> str: ...

    def _special(self, name: str, value: int | None) -> int:
        if value is None:
            raise DataError(
                f"the tokenizer has no {name} token",
                where=str(self.path),
                remedy=f"put a tokenizer_config.json with {name.lower()}_token beside it, "
                f"or prepare with --no-{name.lower()}",
            )
        return value

    def _copy_files(self, folder: str | os.PathLike[str]) -> Path:
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        names = _COMPANIONS if self.path.name in _COMPANIONS else ()
        for source in (self.path.with_name(name) for name in names):
            if source.is_file() and not (out / source.name).exists():
                shutil.copyfile(source, out / source.name)
        return out


class SentencePieceTokenizer(_FileTokenizer):
    """A sentencepiece model, by sentencepiece itself: the reference for LLaMA 1 and 2.

    A long text is encoded in parts where that gives the same ids: its queue of merges grows with
    the text and leaves the caches (BPE at 1 MB took 3.3 times as long in one as in parts).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._model = _load_sentencepiece(path)
        self.vocab_size = self._model.get_piece_size()
        model = self._model
        self._may_cut = _may_cut(model)
        self.bos_id, self.eos_id, self.pad_id = (
            i if i >= 0 else None for i in (model.bos_id(), model.eos_id(), model.pad_id())
        )

    def encode_batch(self, texts: list[str], bos: bool, eos: bool) -> Sequence[Sequence[int]]:
        if not hasattr(self._model, "EncodeAsNumpy"):  # an older sentencepiece
            return super().encode_batch(texts, bos, eos)
        if texts:
            self.encode("", bos, eos)  # raises for a token that is not there
        whole = [text for text in texts if not self._is_long(text)]
        arrays: list[Any] = self._model.EncodeAsNumpy(
            whole, add_bos=bos, add_eos=eos, num_threads=1
        )
        if len(whole) == len(texts):
            return arrays
        short = iter(arrays)
        return [
            self._joined(text, bos, eos) if self._is_long(text) else next(short) for text in texts
        ]

    def _joined(self, text: str, bos: bool, eos: bool) -> Any:
        parts = self._model.EncodeAsNumpy(list(_parts(text)), num_threads=1)
        first, last = [self.bos_id] if bos else [], [self.eos_id] if eos else []
        return np.concatenate([np.array(first, np.int32), *parts, np.array(last, np.int32)])

    def _is_long(self, text: str) -> bool:
        return len(text) >= 2 * _PART_CHARACTERS and self._may_cut

    def _encode(self, text: str) -> list[int]:
        if not self._is_long(text):
            ids: list[int] = self._model.encode(text)
            return ids
        parts: list[list[int]] = self._model.encode(list(_parts(text)), num_threads=1)
        return list(chain.from_iterable(parts))

    def _decode(self, ids: list[int]) -> str:
        text: str = self._model.decode(ids)
        return text

    def save(self, folder: str | os.PathLike[str]) -> None:
        """`tokenizer.model` and what transformers needs; files beside the original are kept."""
        out = self._copy_files(folder)
        model = out / "tokenizer.model"
        if not model.exists():
            shutil.copyfile(self.path, model)
        if not (out / "tokenizer_config.json").exists():
            write_transformers_files(self._model, out)


class JsonTokenizer(_FileTokenizer):
    """A `tokenizer.json`; BOS, EOS and padding by the `tokenizer_config.json` beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._model = self._read()
        except Exception as error:  # the library raises a bare Exception for every broken file
            raise _unreadable(path, str(error)) from error
        # Ids may have gaps, and an embedding needs the largest.
        self.vocab_size = max(self._model.get_vocab(with_added_tokens=True).values()) + 1
        self._model.encode_special_tokens = True
        self._model.no_truncation()
        self._model.no_padding()
        config = self._config()
        self.bos_id, self.eos_id, self.pad_id = (
            self._id_of(config.get(key)) for key in ("bos_token", "eos_token", "pad_token")
        )

    def _read(self) -> Any:
        import tokenizers

        return tokenizers.Tokenizer.from_file(str(self.path))

    def _config(self) -> dict[str, Any]:
        return read_json(self.path.with_name("tokenizer_config.json"))

    def _id_of(self, token: Any) -> int | None:
        content = token.get("content") if isinstance(token, dict) else token
        found: int | None = self._model.token_to_id(content) if content else None
        return found

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._model.encode(text, add_special_tokens=False).ids
        return ids

    def _decode(self, ids: list[int]) -> str:
        text: str = self._model.decode(ids, skip_special_tokens=True)
        return text

    def save(self, folder: str | os.PathLike[str]) -> None:
        out = self._copy_files(folder)
        if not (out / "tokenizer.json").exists():
            shutil.copyfile(self.path, out / "tokenizer.json")
        if not (out / "tokenizer_config.json").exists():
            write_json(
                out / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}
            )


class TiktokenTokenizer(JsonTokenizer):
    """Llama 3's list of tokens, with Meta's pattern and control tokens."""

    def _read(self) -> Any:
        return tiktoken.pipeline(self.path)

    def _config(self) -> dict[str, Any]:
        return tiktoken.CONFIG

    def save(self, folder: str | os.PathLike[str]) -> None:
        """`tokenizer.json` and its config: the list itself says less, and they replace it."""
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        self._model.save(str(out / "tokenizer.json"))
        write_json(out / "tokenizer_config.json", tiktoken.CONFIG)


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Load from a file, or a folder: its `tokenizer.model` if there is one, else `tokenizer.json`.

    Raises `CallError` when nothing is there, `DataError` when the file cannot be understood.
    """
    given = Path(path)
    file = _file_in(given) if given.is_dir() else given
    if file is None or not file.is_file():
        raise CallError(
            f"there is no tokenizer at {given}",
            where=str(given),
            remedy="name a tokenizer.model, a tokenizer.json or a folder that holds one; "
            "`ds-llama data tokenizer` trains one",
        )
    if file.suffix == ".json":
        return JsonTokenizer(file)
    return TiktokenTokenizer(file) if tiktoken.is_tiktoken(file) else SentencePieceTokenizer(file)


def _file_in(folder: Path) -> Path | None:
    model, fast = folder / "tokenizer.model", folder / "tokenizer.json"
    if model.is_file() and not (fast.is_file() and tiktoken.is_tiktoken(model)):
        return model
    return fast if fast.is_file() else None


def _load_sentencepiece(path: Path) -> sentencepiece.SentencePieceProcessor:
    import sentencepiece

    sentencepiece.set_min_log_level(4)
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    except (RuntimeError, OSError) as error:
        raise _unreadable(path, "sentencepiece cannot parse it") from error


def _may_cut(model: sentencepiece.SentencePieceProcessor) -> bool:
    """Whether a text may be encoded in parts, cut at a space, which the prefix of a part replaces.

    No piece may reach from a word over the space behind it, and the space must be known:
    neighbours that are not become one token.
    """
    pieces = model.id_to_piece(list(range(model.get_piece_size())))
    if "\u2581" not in pieces or any(_INNER_SPACE.search(piece) for piece in pieces):
        return False
    return prefixes_plain_text(model.serialized_model_proto())


def _parts(text: str) -> Iterator[str]:
    """`" ".join` of them is the text; none begins or ends in a space."""
    start = 0
    while found := _SPACE.search(text, start + _PART_CHARACTERS):
        yield text[start : found.start()]
        start = found.end()
    yield text[start:]


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(
        f"this is no tokenizer that can be read: {why}",
        where=str(path),
        remedy="name a tokenizer.model, sentencepiece's or Llama 3's, or a Hugging Face "
        "tokenizer.json",
    )
