"""Records of each known form, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_llama.data.chat import FORMATS, BadRecord, ChatEncoder
from ds_llama.data.chat.records import Chat, Text, read_record
from ds_llama.data.rows import Row, encode_pair
from ds_llama.data.tokenizer import load_tokenizer

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
CHAT = Chat([USER, ANSWER], [False, True], None)


@pytest.mark.parametrize(
    ("form", "record", "expected"),
    [
        ("messages", {"messages": [USER, ANSWER], "id": 3}, CHAT),
        (
            "messages",
            {
                "messages": [
                    USER | {"content": [{"type": "text", "text": "q"}], "name": None},
                    ANSWER,
                ]
            },
            CHAT,
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
            CHAT,
        ),
        ("sharegpt", {"conversations": [USER, ANSWER]}, CHAT),
        (
            "alpaca",
            {"instruction": "q", "input": "i", "output": "a"},
            Chat(
                [{**USER, "content": "q\n\ni", "instruction": "q", "input": "i"}, ANSWER],
                [False, True],
            ),
        ),
        (
            "alpaca",
            {"instruction": "q", "output": "a", "system": "s"},
            Chat(
                [
                    {"role": "system", "content": "s"},
                    {**USER, "instruction": "q", "input": ""},
                    ANSWER,
                ],
                [False, False, True],
            ),
        ),
        ("completion", {"prompt": "q", "completion": "a"}, Text("q", "a")),
        (
            "completion",
            {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]},
            Chat([USER, ANSWER, USER, ANSWER], [False, False, False, True]),
        ),
        (
            "rows",
            {"prompt": "q", "choices": ["a", "b"], "answer": 0},
            Row("", 0, "q", ("a", "b"), ("a",)),
        ),
        ("rows", {"prompt": "q", "answer": ["a", "c"]}, Row("", 0, "q", (), ("a", "c"))),
    ],
)
def test_forms(form: str, record: dict[str, Any], expected: Any) -> None:
    assert read_record(record) == expected
    assert read_record(record, form) == expected
    assert form in FORMATS


def test_half_a_character_becomes_a_replacement() -> None:
    found = read_record({"messages": [USER | {"content": "\ud800q"}, ANSWER]})
    assert isinstance(found, Chat)
    assert found.messages[0]["content"] == "\ufffdq"


def _messages(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


CALL: dict[str, Any] = {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"text": "a"}, "of no known form: it has the keys text; known are messages, or"),
        ({}, "of no known form: it has the keys none"),
        ({"messages": "a"}, 'field "messages" is no list: it is str'),
        ({"messages": []}, 'field "messages" is empty'),
        (_messages(USER, ANSWER) | {"tools": "x"}, 'field "tools" is no list: it is str'),
        (_messages(USER, "a"), "no message: message 2 is str"),
        (_messages(USER), "no turn of the assistant to learn"),
        (_messages(USER, ANSWER | {"weight": 0}), "no turn of the assistant to learn"),
        (_messages(USER, ANSWER | {"weight": 0.5}), "unknown weight: message 2 has 0.5, neither"),
        (_messages(USER | {"role": "boss"}, ANSWER), "unknown role: message 1 has 'boss'; known"),
        (_messages({"content": "q"}, ANSWER), "unknown role: message 1 has None"),
        (_messages(USER, ANSWER | {"content": " "}), "empty answer: message 2"),
        (_messages(USER | {"content": 3}, ANSWER), "content is no text: message 1 has int"),
        (_messages(USER | {"content": None}, ANSWER), "content is no text: message 1 has NoneType"),
        (
            _messages(USER | {"content": [{"type": "image_url"}]}, ANSWER),
            "content other than text: message 1 has a part of type 'image_url'",
        ),
        (_messages(USER | {"content": ["x"]}, ANSWER), "content other than text: message 1 has a"),
        (
            _messages(USER, CALL | {"tool_calls": [{"function": {}}]}),
            "tool call without a function's name: message 2",
        ),
        (
            _messages(USER, CALL | {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}),
            "tool call's arguments are no JSON: message 2, Expecting",
        ),
        ({"conversations": ["x"]}, "no message: turn 1 is str"),
        ({"conversations": [{"from": "x", "value": "a"}]}, "unknown speaker: turn 1 is from 'x'"),
        ({"conversations": [{"value": "a"}]}, "unknown speaker: turn 1 is from None; known are"),
        ({"conversations": [{"from": "gpt"}]}, "content is no text: message 1 has NoneType"),
        ({"instruction": " ", "output": "a"}, 'field "instruction" is empty'),
        ({"instruction": "q", "output": None}, 'field "output" is no text: it is NoneType'),
        ({"instruction": "q", "output": ""}, 'field "output" is empty'),
        ({"prompt": "q", "completion": " "}, 'field "completion" is empty'),
        ({"prompt": "q", "completion": 1}, 'field "completion" is no text: it is int'),
        ({"prompt": [USER], "completion": "a"}, 'field "completion" is no list: it is str'),
        ({"prompt": [USER, ANSWER], "completion": [USER]}, "no turn of the assistant to learn"),
        ({"prompt": "q", "answer": ""}, 'field "answer" is empty'),
        (
            {"prompt": "q", "choices": ["a", "b"], "answer": "c"},
            "no question with its answer: the answer 'c' is not among the choices",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_record(record: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadRecord) as caught:
        read_record(record)
    assert str(caught.value).startswith(problem)


def test_a_form_that_was_asked_for_is_insisted_on() -> None:
    with pytest.raises(BadRecord, match='field "conversations" is no list: it is NoneType'):
        read_record({"messages": [USER, ANSWER]}, "sharegpt")
    with pytest.raises(BadRecord, match='no field "output"'):
        read_record({"instruction": "q"}, "alpaca")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "type"]), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "messages",
                "conversations",
                "instruction",
                "input",
                "output",
                "prompt",
                "completion",
                "answer",
                "choices",
                "tools",
            ]
        ),
        _JSON,
    ),
    st.sampled_from(FORMATS),
)
def test_any_record_is_read_or_refused(record: dict[str, Any], form: str) -> None:
    try:
        found = read_record(record, form)
    except BadRecord:
        return
    assert isinstance(found, (Chat, Text, Row))


def test_a_completion_follows_its_prompt(tokenizer_folder: Path) -> None:
    tokenizer, encoder = load_tokenizer(tokenizer_folder), ChatEncoder(tokenizer_folder)
    for prompt, completion in (
        ("the model", " step"),
        ("loss\n", "12"),
        ("a ", "b"),
        ("mo", "del"),
    ):
        ids, mask = encoder.encode({"prompt": prompt, "completion": completion})
        whole = tokenizer.encode(prompt + completion, bos=True, eos=True)
        assert ids == whole
        asked = tokenizer.encode(prompt, bos=True)
        start = mask.index(1)
        assert mask == [0] * start + [1] * (len(ids) - start)
        if prompt + completion != "model" and prompt[-1] != " ":
            assert ids[:start] == asked, "what the model is asked with is not learnt"
        assert completion.strip() in tokenizer.decode(ids[start:])
    melted = encoder.encode({"prompt": "mo", "completion": "del"})
    assert "model" in tokenizer.decode([i for i, m in zip(*melted, strict=True) if m])
    bare = ChatEncoder(tokenizer_folder, bos=False, eos=False)
    assert bare.encode({"prompt": "the", "completion": " step"}).ids == tokenizer.encode("the step")


def test_rows_are_learnt_as_they_are_scored(tokenizer_folder: Path) -> None:
    """The ids and the border of `ds-llama eval`, then the end of the text."""
    from ds_llama.evals.scoring import _encoded

    tokenizer, encoder = (
        load_tokenizer(tokenizer_folder),
        ChatEncoder(tokenizer_folder, form="rows"),
    )
    for prompt in ("the model", "loss:\n", "step ", "mo"):
        record = {"prompt": prompt, "choices": ["no", "del token"], "answer": 1}
        row = read_record(record)
        assert isinstance(row, Row)
        context, continuation = _encoded(tokenizer, row, "del token")
        assert encode_pair(tokenizer, row, "del token") == (context, continuation)
        ids, mask = encoder.encode(record)
        assert ids == [*context, *continuation, tokenizer.eos_id]
        assert mask == [0] * len(context) + [1] * (len(continuation) + 1)
