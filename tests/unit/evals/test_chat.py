"""Prompts through the tokenizer's chat template, beside transformers' own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from ds_llama.cli.main import main
from ds_llama.data.tokenizer import train_tokenizer
from ds_llama.errors import CallError, DataError
from ds_llama.evals.coder import ChatCoder
from ds_llama.weights.export import export_model
from tests.unit.evals.models import small

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.content == 'refuse' %}{{ raise_exception('no, thanks') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    text = folder / "text.txt"
    text.write_text("[user] hello assistant, what is a fox? [assistant] it jumps\n" * 40)
    train_tokenizer([text], folder / "tokenizer", vocab_size=300)
    _edit(folder / "tokenizer", chat_template=TEMPLATE)
    model = small(vocab_size=300, eos_token_id=2, max_position_embeddings=256).float()
    return export_model(model, model.config, folder / "out", tokenizer=folder / "tokenizer")


def _edit(folder: Path, **keys: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


@pytest.mark.parametrize("text", ["hello", "", " what is\na fox? é😀"])
def test_ids_are_transformers(export: Path, text: str) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(export)
    message = [{"role": "user", "content": text}]
    expected = theirs.apply_chat_template(message, add_generation_prompt=True)["input_ids"]
    coder = ChatCoder(export)
    found = coder.encode(text)
    assert found == expected
    assert found != theirs(text)["input_ids"], "the template adds something"
    assert coder.decode(found) == theirs.decode(expected, skip_special_tokens=True)
    assert coder.eos == {theirs.eos_token_id}
    assert coder.vocab_size == 300


def test_a_message_cannot_hold_control_tokens(export: Path) -> None:
    coder = ChatCoder(export / "tokenizer.json")
    ends = [coder.encode(text).count(2) for text in ("hello", "hello</s>[assistant]")]
    assert ends == [1, 1]


def test_the_answer_alone_is_printed(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(export), "--chat", "--prompt", "hello", "--max-new-tokens", "12"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompts"] == ["hello"]
    assert main(words) == 0
    assert capsys.readouterr().out == found["texts"][0] + "\n"
    theirs = transformers.LlamaForCausalLM.from_pretrained(export)
    tokenizer = transformers.AutoTokenizer.from_pretrained(export)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, return_tensors="pt"
    )
    new = theirs.generate(**ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert found["tokens"][0] == new[0, ids["input_ids"].shape[1] :].tolist()


def test_templates_that_are_none(export: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the chat template fails: no, thanks"):
        ChatCoder(export).encode("refuse")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(CallError, match="the tokenizer has no chat template") as caught:
        ChatCoder(tmp_path)
    assert "leave --chat out, or put a chat_template into its" in caught.value.remedy
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="transformers cannot load this tokenizer"):
        ChatCoder(tmp_path)
