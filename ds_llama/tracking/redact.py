"""Keep secrets out of what is sent or written."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

REMOVED = "<removed>"
_WORDS = ("auth", "bearer", "passphrase")
_ENDINGS = ("key", "token", "secret", "password", "passwd", "credential", "credentials")
_SHORTEST = 8  # a shorter value of a secret variable is a flag or a word, and stands everywhere
_USER_INFO = re.compile(r"(\w+://)[^/@\s]+@")


def is_secret_name(name: str) -> bool:
    """Whether a key or a variable of this name may hold a secret.

    By words, not by letters: `api_key`, `hubToken` and `WANDB_API_KEY` do, `tokenizer` does not.
    `num_key_value_heads` and `pad_token_id` do too; that they hold numbers is seen by `without`.
    """
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return any(word.lower() in _WORDS or word.lower().endswith(_ENDINGS) for word in words)


def values(environment: Mapping[str, str] | None = None) -> list[str]:
    """Values of the environment's variables with secret names, the longest first."""
    found = os.environ if environment is None else environment
    secret = {
        value
        for name, value in found.items()
        if is_secret_name(name) and len(value) >= _SHORTEST
        # SSH_AUTH_SOCK and the like: a path is where something is, not what it is
        if not value.startswith(("/", "~"))
    }
    return sorted(secret, key=len, reverse=True)


def without(tree: Any, secret: list[str] | None = None) -> Any:
    """A copy of a JSON tree without text under secret names, and without secret values anywhere.

    `secret` are those values, the environment's by default. Numbers stay: no secret is a number.
    """
    secret = values() if secret is None else secret
    if isinstance(tree, Mapping):
        return {
            str(key): REMOVED
            if is_secret_name(str(key)) and _has_text(value)
            else without(value, secret)
            for key, value in tree.items()
        }
    if isinstance(tree, list | tuple):
        return [without(item, secret) for item in tree]
    return clean(tree, secret) if isinstance(tree, str) else tree


def clean(text: str, secret: list[str]) -> str:
    """`text` without the secret values, and without user:password@ in its URLs."""
    for value in secret:
        text = text.replace(value, REMOVED)
    return _USER_INFO.sub(rf"\1{REMOVED}@", text)


def _has_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_text(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_has_text(item) for item in value)
    return isinstance(value, str) and bool(value)
