from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from ds_llama.data.chat import ChatEncoder
from ds_llama.data.tokenizer import load_tokenizer
from tests.unit.data.test_tiktoken import FOLDER

CHATML = ["<|im_start|>", "<|im_end|>"]
# Drawn around what is learnt.
OPEN, CLOSE = "⟦", "⟧"


@pytest.fixture(scope="session")
def tokenizers_at(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of tokenizers, by the family whose ids and control tokens they have."""
    root = tmp_path_factory.mktemp("tokenizers")
    load_tokenizer(FOLDER).save(root / "llama-3")
    load_tokenizer(FOLDER).save(root / "chatml-bytes")
    for name in ("llama-2", "llama-class", "llama-legacy", "chatml"):
        shutil.copytree(tokenizer_folder, root / name)
    for name in ("chatml", "chatml-bytes"):
        model = tokenizers.Tokenizer.from_file(str(root / name / "tokenizer.json"))
        model.add_special_tokens([tokenizers.AddedToken(text, special=True) for text in CHATML])
        model.save(str(root / name / "tokenizer.json"))
    configure(root / "llama-class", tokenizer_class="LlamaTokenizer", legacy=False)
    configure(root / "llama-legacy", tokenizer_class="LlamaTokenizerFast", legacy=True)
    return root


def configure(folder: Path, **keys: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def drawn(folder: Path, ids: list[int], mask: list[int]) -> str:
    """The text of the tokens, with brackets around those that are learnt."""
    model = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    bytes_of = _bytes_of_letters() if "llama-3" in folder.name or "bytes" in folder.name else None
    parts, inside = [], 0
    for token, learnt in zip(ids, mask, strict=True):
        parts += [(OPEN if learnt else CLOSE).encode()] if learnt != inside else []
        parts.append(_text_of(model.id_to_token(token), bytes_of))
        inside = learnt
    return b"".join([*parts, CLOSE.encode() if inside else b""]).decode()


def _text_of(piece: str, bytes_of: dict[str, int] | None) -> bytes:
    if piece.startswith("<|") or bytes_of is None:
        raw = bytes([int(piece[3:5], 16)]) if piece.startswith("<0x") else None
        return raw or piece.replace("\u2581", " ").encode()
    return bytes(bytes_of[letter] for letter in piece)


def _bytes_of_letters() -> dict[str, int]:
    from ds_llama.data.tokenizer_tiktoken import _letters

    return {letter: byte for byte, letter in enumerate(_letters())}


@pytest.fixture
def draw(tokenizers_at: Path) -> Callable[..., str]:
    """What an encoder makes of a record, drawn."""

    def run(record: dict[str, Any], tokenizer: str, template: str | None, **keys: Any) -> str:
        folder = tokenizers_at / tokenizer
        return drawn(folder, *ChatEncoder(folder, template, **keys).encode(record))

    return run
