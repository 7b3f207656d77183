"""How prompts become ids: as text, or as the user's turn of a chat."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ds_llama.data.fingerprint import read_json
from ds_llama.data.tokenizer import load_tokenizer
from ds_llama.errors import CallError, DataError

_CONFIG = "tokenizer_config.json"


class TextCoder:
    """Prompts as they are, behind the BOS token if there is one."""

    def __init__(self, path: Path, eos: Collection[int] = ()) -> None:
        self._tokenizer = load_tokenizer(path)
        self.vocab_size = self._tokenizer.vocab_size
        self.eos = _with(eos, self._tokenizer.eos_id)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, bos=self._tokenizer.bos_id is not None)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)


class ChatCoder:
    """Each prompt as one message of a user, by the tokenizer's own template and transformers.

    path: the tokenizer's folder, or a file in it. What looks like a control token in a message is
    text. Raises CallError when there is no template, DataError when it fails.
    """

    def __init__(self, path: Path, eos: Collection[int] = ()) -> None:
        folder = path if path.is_dir() else path.parent
        self._folder = folder
        if not _has_template(folder):
            raise _no_template(folder)
        self._tokenizer = _by_transformers(folder)
        self.vocab_size = max(self._tokenizer.get_vocab().values()) + 1
        self.eos = _with(eos, self._tokenizer.eos_token_id)

    def encode(self, text: str) -> list[int]:
        try:
            found = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": text}],
                add_generation_prompt=True,
                sanitize_control_tokens=True,
                return_dict=True,
            )
        except Exception as error:  # a template is a program of someone else's
            raise DataError(
                f"the chat template fails: {error}",
                where=str(self._folder),
                remedy="mend the template, or leave --chat out",
            ) from error
        return list(found["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def _with(eos: Collection[int], own: int | None) -> frozenset[int]:
    return frozenset(eos) if own is None else frozenset((*eos, own))


def _has_template(folder: Path) -> bool:
    """Looked up before transformers is imported, which takes seconds."""
    if (folder / "chat_template.jinja").is_file():
        return True
    return bool(read_json(folder / _CONFIG).get("chat_template"))


def _by_transformers(folder: Path) -> Any:
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # tokenizers raises a bare Exception for every broken file
        raise DataError(
            f"transformers cannot load this tokenizer: {error}",
            where=str(folder),
            remedy="give --tokenizer with a folder that AutoTokenizer.from_pretrained loads",
        ) from error
    if not tokenizer.chat_template:
        raise _no_template(folder)
    return tokenizer


def _no_template(folder: Path) -> CallError:
    return CallError(
        "the tokenizer has no chat template",
        where=str(folder),
        remedy=f"leave --chat out, or put a chat_template into its {_CONFIG}, "
        "as models that were trained on chats have",
    )
