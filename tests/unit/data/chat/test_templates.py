"""What is learnt of a chat, drawn by hand for each template, and ids beside transformers'."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from ds_llama.data.chat import BadRecord, ChatEncoder
from ds_llama.data.chat import pipeline as pipeline_module
from ds_llama.data.chat.pipeline import Pipeline
from ds_llama.data.chat.template import Template, find_template, shipped_templates
from ds_llama.data.tokenizer import load_tokenizer
from ds_llama.errors import CallError, DataError
from tests.unit.data.chat.conftest import configure

Draw = Callable[..., str]

CHAT = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "the model?"},
    {"role": "assistant", "content": "a shard"},
    {"role": "user", "content": "  why\n"},
    {"role": "assistant", "content": "12 é日"},
]
ALPACA = {"instruction": "add", "input": "1 2", "output": "3"}

# By hand: in brackets what the model learns to write.
CHATML = """<|im_start|>system
be short<|im_end|>
<|im_start|>user
the model?<|im_end|>
<|im_start|>assistant
⟦a shard<|im_end|>⟧
<|im_start|>user
  why
<|im_end|>
<|im_start|>assistant
⟦12 é日<|im_end|>⟧
"""
LLAMA_3 = """<|begin_of_text|><|start_header_id|>system<|end_header_id|>

be short<|eot_id|><|start_header_id|>user<|end_header_id|>

the model?<|eot_id|><|start_header_id|>assistant<|end_header_id|>

⟦a shard<|eot_id|>⟧<|start_header_id|>user<|end_header_id|>

why<|eot_id|><|start_header_id|>assistant<|end_header_id|>

⟦12 é日<|eot_id|>⟧"""
# sentencepiece puts a space before the first word behind a control token.
LLAMA_2 = """<s> [INST] <<SYS>>
be short
<</SYS>>

the model? [/INST]⟦ a shard </s>⟧<s> [INST] why [/INST]⟦ 12 é日 </s>⟧"""
ALPACA_PROMPT = """<s> Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request.

### Instruction:
add

### Input:
1 2

### Response:
⟦3</s>⟧"""  # noqa: E501


@pytest.mark.parametrize(
    ("template", "tokenizer", "expected"),
    [
        ("chatml", "chatml-bytes", CHATML),
        ("llama-3", "llama-3", LLAMA_3),
        ("llama-2", "llama-2", LLAMA_2),
    ],
)
def test_the_answers_are_learnt_and_how_they_end(
    draw: Draw, template: str, tokenizer: str, expected: str
) -> None:
    assert draw({"messages": CHAT}, tokenizer, template) == expected


def test_alpacas_prompt(draw: Draw) -> None:
    assert draw(ALPACA, "llama-2", "alpaca") == ALPACA_PROMPT
    without = draw({**ALPACA, "input": ""}, "llama-2", "alpaca")
    assert "a task. Write" in without
    assert "### Input" not in without
    assert without.endswith("### Instruction:\nadd\n\n### Response:\n⟦3</s>⟧")
    chat = draw({"messages": CHAT}, "llama-2", "alpaca")
    assert chat.startswith(
        "<s> be short\n\n### Instruction:\nthe model?\n\n### Response:\n⟦a shard"
    )
    assert chat.count("⟦") == 2


def test_the_mask_sees_what_it_should(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage: an answer that begins a character later is drawn otherwise."""
    from ds_llama.data.chat import spans

    right = spans._turn
    monkeypatch.setattr(spans, "_turn", lambda *a: (right(*a)[0] + 1, right(*a)[1]))
    assert draw({"messages": CHAT}, "llama-3", "llama-3") != LLAMA_3


TEXTS = ["the model", "", " 12\n", "\n\nx", "<s></s>", "a<|eot_id|>b", "<|im_end|>", "é日 😀 <unk>"]


@pytest.mark.parametrize(
    ("tokenizer", "template"),
    [
        ("chatml", "chatml"),
        ("chatml-bytes", "chatml"),
        ("llama-2", "llama-2"),
        ("llama-class", "llama-2"),
        ("llama-legacy", "llama-2"),
        ("llama-class", "alpaca"),
        ("llama-3", "llama-3"),
    ],
)
def test_ids_and_text_are_transformers(tokenizers_at: Path, tokenizer: str, template: str) -> None:
    folder = tokenizers_at / tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    source = find_template(template, folder)
    assert source is not None
    encoder = ChatEncoder(folder, template)
    pipeline = Pipeline(load_tokenizer(folder))
    assert pipeline.names == theirs.special_tokens_map
    assert encoder.vocab_size == max(theirs.get_vocab().values()) + 1
    ours = Template(*source, pipeline.names)
    for text in TEXTS:
        chat = [
            {"role": "system", "content": f"be short{text}"},
            {"role": "user", "content": text},
            {"role": "assistant", "content": f"{text} yes {text}"},
            {"role": "user", "content": f"why{text}"},
            {"role": "assistant", "content": f"so{text}"},
        ]
        keys: dict[str, Any] = {"chat_template": source[0]}
        rendered = theirs.apply_chat_template(chat, tokenize=False, **keys)
        assert ours.render(chat) == rendered
        found = theirs.apply_chat_template(chat, sanitize_control_tokens=True, **keys)
        ids, mask = encoder.encode({"messages": chat})
        assert ids == found["input_ids"], text
        prompt = theirs.apply_chat_template(
            chat[:-1], add_generation_prompt=True, sanitize_control_tokens=True, **keys
        )["input_ids"]
        if not text.startswith("\n"):  # else the answer may melt with the prompt's line break
            assert ids[: len(prompt)] == prompt
            assert mask[len(prompt) - 1 : len(prompt) + 1] == [0, 1]


@pytest.mark.parametrize(
    ("part", "tokenizer"), [("_rebuild", "llama-class"), ("_is_rebuilt", "llama-legacy")]
)
def test_another_pipeline_than_transformers_gives_other_ids(
    tokenizers_at: Path, monkeypatch: pytest.MonkeyPatch, part: str, tokenizer: str
) -> None:
    """Sabotage: tokenizer.json as it stands, where transformers takes its vocabulary only."""
    record = {"messages": [{**m, "content": f" {m['content']}"} for m in CHAT]}
    right = ChatEncoder(tokenizers_at / tokenizer, "alpaca").encode(record).ids
    monkeypatch.setattr(pipeline_module, part, lambda *_, **__: False)
    assert ChatEncoder(tokenizers_at / tokenizer, "alpaca").encode(record).ids != right


def test_a_message_cannot_end_its_turn(draw: Draw) -> None:
    chat = [
        {"role": "user", "content": "<|eot_id|>x"},
        {"role": "assistant", "content": "a<|eot_id|>b"},
    ]
    found = draw({"messages": chat}, "llama-3", "llama-3")
    assert found.endswith("⟦a<|eot_id|>b<|eot_id|>⟧")


def test_a_control_token_in_a_message_is_no_control_token(tokenizers_at: Path) -> None:
    folder = tokenizers_at / "llama-3"
    encoder, eot = ChatEncoder(folder, "llama-3"), 500 + 9
    counts = []
    for text in (
        "ab",
        "a<|eot_id|>b",
        "a\U000f0000<|eot_id|>\U000f0001b",
        "\U000f0002a\U000f0003b",
    ):
        chat = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
        ids, mask = encoder.encode({"messages": chat})
        assert mask[-1] == 1
        counts.append(ids.count(eot))
    assert counts == [2, 2, 2, 2]


GENERATION = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


def test_a_template_may_mark_what_is_learnt(
    draw: Draw, tokenizers_at: Path, tmp_path: Path
) -> None:
    path = tmp_path / "t.jinja"
    path.write_text(GENERATION)
    found = draw({"messages": CHAT}, "llama-2", str(path))
    assert found == (
        "<s> [system]be short[user]the model?[assistant]⟦a shard</s>⟧ [user]  why\n"
        "[assistant]⟦12 é日</s>⟧"
    )
    folder = tokenizers_at / "llama-2"
    theirs = transformers.AutoTokenizer.from_pretrained(folder).apply_chat_template(
        CHAT, chat_template=GENERATION, return_assistant_tokens_mask=True
    )
    ids, mask = ChatEncoder(folder, str(path)).encode({"messages": CHAT})
    assert (ids, mask) == (theirs["input_ids"], theirs["assistant_masks"])
    light = [{**m, "weight": 0} if m["content"] == "a shard" else m for m in CHAT]
    assert "a shard" not in draw({"messages": light}, "llama-2", str(path)).partition("⟦")[2]


def test_an_answer_without_weight_is_read_only(draw: Draw) -> None:
    light = [{**m, "weight": 0} if m["content"] == "a shard" else m for m in CHAT]
    expected = LLAMA_3.replace("⟦a shard<|eot_id|>⟧", "a shard<|eot_id|>")
    assert draw({"messages": light}, "llama-3", "llama-3") == expected


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (
            "{% for m in messages %}{{ m.content if loop.last }}{{ eos_token }}{% endfor %}",
            "the chat template renders a turn otherwise than after its prompt, or otherwise when "
            "more follows: message 3",
        ),
        (
            "{% for m in messages[1:] %}{{ m.content }}{{ eos_token }}{% endfor %}",
            "the chat template leaves out a message or changes it: message 1",
        ),
        ("{{ raise_exception('not me') }}", "the chat template fails: not me"),
        ("{{ strftime_now('%d') }}", "the chat template fails: 'strftime_now' is undefined"),
        ("{% set x = namespace(__class__=1) %}", "the chat template fails: a namespace may not"),
        (
            "{% if 0 %}{% generation %}{% endgeneration %}{% endif %}{{ messages | tojson }}",
            "the chat template marks nothing to learn",
        ),
    ],
)
def test_a_chat_that_a_template_cannot_show(
    tokenizers_at: Path, tmp_path: Path, template: str, problem: str
) -> None:
    path = tmp_path / "t.jinja"
    path.write_text(template)
    with pytest.raises(BadRecord) as caught:
        ChatEncoder(tokenizers_at / "llama-2", str(path)).encode({"messages": CHAT})
    assert str(caught.value).startswith(problem)


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"z": 1, "a": 2}}}]
CALLING = [
    {"role": "user", "content": "rain?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"type": "function", "function": {"name": "weather", "arguments": '{"city": "é"}'}}
        ],
    },
    {"role": "tool", "content": 'no "é"'},
    {"role": "assistant", "content": "no rain"},
]
WITH_TOOLS = (
    "{{ tools | tojson }}{% for m in messages %}[{{ m.role }}]"
    "{{ m.content | tojson if m.role == 'tool' else m.content }}"
    "{% for call in m.tool_calls %}{{ call.function.name }}"
    "{{ call.function.arguments | tojson }}{% endfor %}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_tool_calls_are_learnt_where_the_template_shows_them(draw: Draw, tmp_path: Path) -> None:
    path = tmp_path / "t.jinja"
    path.write_text(WITH_TOOLS)
    found = draw({"messages": CALLING, "tools": TOOLS}, "llama-2", str(path))
    assert (
        '[assistant]⟦weather{"city": "é"}</s>⟧ [tool]"no \\"é\\""</s> [assistant]⟦no rain</s>⟧'
        in found
    )
    assert '"parameters": {"z": 1, "a": 2}' in found
    for record in ({"messages": CALLING}, {"messages": CHAT, "tools": TOOLS}):
        with pytest.raises(BadRecord, match=r"has no place for tools|leaves out a message"):
            draw(record, "llama-3", "llama-3")


def test_the_tokenizers_own_template_is_taken(tokenizers_at: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tokenizers_at / "llama-2", tmp_path / "own")
    with pytest.raises(
        CallError, match="the records are chats, and the tokenizer has no"
    ) as caught:
        ChatEncoder(folder).encode({"messages": CHAT})
    assert "or one of alpaca, chatml, llama-2, llama-3" in caught.value.remedy
    expected = ChatEncoder(folder, "llama-2").encode({"messages": CHAT}).ids
    source = (find_template("llama-2", folder) or ("", ""))[0]
    configure(folder, chat_template=source)
    assert ChatEncoder(folder).encode({"messages": CHAT}).ids == expected
    configure(folder, chat_template=[{"name": "default", "template": source}])
    assert ChatEncoder(folder).encode({"messages": CHAT}).ids == expected
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    )
    assert len(ChatEncoder(folder).encode({"messages": CHAT}).ids) < len(expected)


def test_a_lone_tokenizer_model_has_a_pipeline_too(tokenizer_folder: Path, tmp_path: Path) -> None:
    shutil.copy(tokenizer_folder / "tokenizer.model", tmp_path)
    shutil.copy(tokenizer_folder / "tokenizer.model", tmp_path / "a.model")
    expected = ChatEncoder(tokenizer_folder, "llama-2").encode({"messages": CHAT})
    for path in (tmp_path, tmp_path / "a.model"):
        assert ChatEncoder(path, "llama-2").encode({"messages": CHAT}) == expected


def test_mistakes_in_templates(tokenizers_at: Path, tmp_path: Path) -> None:
    folder = tokenizers_at / "llama-2"
    with pytest.raises(CallError, match="there is no chat template vicuna") as called:
        ChatEncoder(folder, "vicuna")
    assert called.value.remedy == "name a jinja file, or one of alpaca, chatml, llama-2, llama-3"
    path = tmp_path / "t.jinja"
    path.write_text("{% for %}")
    with pytest.raises(DataError, match="the chat template is no jinja") as caught:
        ChatEncoder(folder, str(path))
    assert caught.value.where == str(path)
    # ChatML's tokens are not in this vocabulary: they would be letters, and end nothing.
    with pytest.raises(DataError, match="an answer ends with no control token") as caught:
        ChatEncoder(folder, "chatml")
    assert "<|im_end|>" in caught.value.what
    assert "end the assistant's turns with {{ eos_token }}" in caught.value.remedy


@pytest.mark.parametrize("name", shipped_templates())
def test_what_is_shipped_takes_any_number_of_turns(tokenizers_at: Path, name: str) -> None:
    folder = tokenizers_at / {"chatml": "chatml", "llama-3": "llama-3"}.get(name, "llama-2")
    encoder = ChatEncoder(folder, name)
    turns = [m for m in CHAT if m["role"] != "system"] * 2
    for count in (2, 4, 8):
        _, mask = encoder.encode({"messages": turns[:count]})
        runs = sum(a < b for a, b in zip([0, *mask], mask, strict=False))
        assert runs == count // 2
