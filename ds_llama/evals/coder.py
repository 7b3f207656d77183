"""How prompts become ids: as text, or as a user's turns of a chat."""

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
    """Each prompt as a user's next message, by the tokenizer's own template and transformers.

    path: the tokenizer's folder, or a file in it. system: a message that stands before all others.
    What looks like a control token in a message is text. Raises CallError when there is no template
    or it leaves `system` out, DataError when it fails.
    """

    def __init__(self, path: Path, eos: Collection[int] = (), *, system: str | None = None) -> None:
        folder = path if path.is_dir() else path.parent
        self._folder = folder
        if not _has_template(folder):
            raise _no_template(folder)
        self._tokenizer = _by_transformers(folder)
        self.vocab_size = max(self._tokenizer.get_vocab().values()) + 1
        self.eos = _with(eos, self._tokenizer.eos_token_id)
        self._system = [] if system is None else [_message("system", system)]
        self._past: list[dict[str, str]] = []
        if system and self.encode("") == self._ids([_message("user", "")]):
            raise CallError(
                "the chat template has no place for a system message",
                where=str(folder),
                remedy="leave --system out, and say it in the first message",
            )

    def encode(self, text: str) -> list[int]:
        return self._ids([*self._system, *self._past, _message("user", text)])

    def remember(self, text: str, answer: str) -> None:
        """From now on messages are said after this one and its answer."""
        self._past += [_message("user", text), _message("assistant", answer)]

    def forget(self) -> bool:
        """Leave out the oldest message and its answer; whether there was one."""
        there = bool(self._past)
        del self._past[:2]
        return there

    def _ids(self, messages: list[dict[str, str]]) -> list[int]:
        try:
            found = self._tokenizer.apply_chat_template(
                messages,
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


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


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
