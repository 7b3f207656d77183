"""A JSON record of any of the known forms, as a conversation or as a prompt and what follows it.

    messages     {"messages": [{"role": "user", "content": "…"}, …], "tools": […]}       OpenAI
    sharegpt     {"conversations": [{"from": "human", "value": "…"}, …]}
    alpaca       {"instruction": "…", "input": "…", "output": "…"}
    completion   {"prompt": "…", "completion": "…"}                  text, or lists of messages
    rows         {"prompt": "…", "choices": […], "answer": …}        as `ds-llama eval` reads them

Other keys of a record are not read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ds_llama.data.rows import Row, row_of
from ds_llama.errors import DataError

_SURROGATES = re.compile("[\ud800-\udfff]")
_ROLES = ("system", "developer", "user", "assistant", "tool")
_FROM = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "function": "tool",
    "observation": "tool",
}

Message = dict[str, Any]


class BadRecord(Exception):
    """Why one record is left out: the kind, then, after a colon, what is so in this one."""


class Chat(NamedTuple):
    """Messages for a chat template, which of them are learnt, and the tools that it may show."""

    messages: list[Message]
    learnt: list[bool]
    tools: list[Any] | None = None


class Text(NamedTuple):
    """A prompt and its completion, laid end to end as they are."""

    prompt: str
    completion: str


def read_record(record: Mapping[str, Any], form: str = "chat") -> Chat | Text | Row:
    """`form`: one of FORMATS; "chat" tells the form by the record's keys. Raises BadRecord."""
    return _FORMS[form if form != "chat" else form_of(record)](_clean(record))


def form_of(record: Mapping[str, Any]) -> str:
    for form, needed in _KEYS.items():
        if all(key in record for key in needed):
            return form
    raise BadRecord(
        f"of no known form: it has the keys {', '.join(sorted(record)[:8]) or 'none'}; known are "
        + ", or ".join(" and ".join(keys) for keys in _KEYS.values())
    )


def _messages(record: Mapping[str, Any]) -> Chat:
    messages = _listed(record, "messages")
    tools = record.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise BadRecord(f'field "tools" is no list: it is {type(tools).__name__}')
    return _chat([_message(m, i) for i, m in enumerate(messages, 1)], tools)


def _sharegpt(record: Mapping[str, Any]) -> Chat:
    turns = _listed(record, "conversations")
    return _chat([_turn(turn, i) for i, turn in enumerate(turns, 1)])


def _alpaca(record: Mapping[str, Any]) -> Chat:
    """The user's message is the instruction and, below an empty line, the input.

    Both are kept apart beside it as well: the prompt that Alpaca was trained with needs them.
    """
    instruction, output = _text(record, "instruction"), _text(record, "output")
    more = _text(record, "input") if record.get("input") is not None else ""
    for key, text in (("instruction", instruction), ("output", output)):
        if not text.strip():
            raise BadRecord(f'field "{key}" is empty')
    content = f"{instruction}\n\n{more}" if more.strip() else instruction
    asked = {"role": "user", "content": content, "instruction": instruction, "input": more}
    start = [{"role": "system", "content": _text(record, "system")}] if record.get("system") else []
    return _chat([*start, asked, {"role": "assistant", "content": output}])


def _completion(record: Mapping[str, Any]) -> Chat | Text:
    if not isinstance(record.get("prompt"), list):
        prompt, completion = _text(record, "prompt"), _text(record, "completion")
        if not completion.strip():
            raise BadRecord('field "completion" is empty')
        return Text(prompt, completion)
    messages = {**record, "messages": [*record["prompt"], *_listed(record, "completion")]}
    chat, start = _messages(messages), len(record["prompt"])
    learnt = [yes and i >= start for i, yes in enumerate(chat.learnt)]
    return chat._replace(learnt=_some(learnt))


def _row(record: Mapping[str, Any]) -> Row:
    try:
        row = row_of(record, "", 0)
    except DataError as error:
        raise BadRecord(f"no question with its answer: {error.what}") from error
    if not row.answers[0].strip():
        raise BadRecord('field "answer" is empty')
    return row


_KEYS = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "completion": ("prompt", "completion"),
    "rows": ("prompt", "answer"),
}
_FORMS: dict[str, Callable[[Mapping[str, Any]], Chat | Text | Row]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "completion": _completion,
    "rows": _row,
}
FORMATS = ("chat", *_FORMS)


def _chat(messages: list[Message], tools: list[Any] | None = None) -> Chat:
    learnt = [m["role"] == "assistant" and m.pop("weight", 1) != 0 for m in messages]
    return Chat(messages, _some(learnt), tools or None)


def _some(learnt: list[bool]) -> list[bool]:
    if not any(learnt):
        raise BadRecord("no turn of the assistant to learn")
    return learnt


def _message(message: Any, number: int) -> Message:
    """Without keys that are null: OpenAI writes them, and templates print them as "None"."""
    if not isinstance(message, Mapping):
        raise BadRecord(f"no message: message {number} is {type(message).__name__}")
    made = {key: value for key, value in message.items() if value is not None}
    role = made.get("role")
    if role not in _ROLES:
        raise BadRecord(
            f"unknown role: message {number} has {role!r}; known are {', '.join(_ROLES)}"
        )
    if made.get("weight", 1) not in (0, 1):
        raise BadRecord(f"unknown weight: message {number} has {made['weight']!r}, neither 0 nor 1")
    if "tool_calls" in made:
        made["tool_calls"] = [_call(call, number) for call in _listed(made, "tool_calls")]
    if "content" in made or "tool_calls" not in made:
        made["content"] = _content(made.get("content"), number)
    if role == "assistant" and not (made.get("content", "").strip() or made.get("tool_calls")):
        raise BadRecord(f"empty answer: message {number}")
    return made


def _content(content: Any, number: int) -> str:
    """Text, or the text of parts of text laid end to end."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRecord(f"content is no text: message {number} has {type(content).__name__}")
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise BadRecord(
                f"content other than text: message {number} has a part of type {kind!r}"
            )
    return "".join(part["text"] for part in content)


def _call(call: Any, number: int) -> Any:
    """OpenAI writes a call's arguments as a JSON text, templates are written for the object."""
    called = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(called, Mapping) or not isinstance(called.get("name"), str):
        raise BadRecord(f"tool call without a function's name: message {number}")
    arguments = called.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise BadRecord(
                f"tool call's arguments are no JSON: message {number}, {error}"
            ) from error
    return {**call, "function": {**called, "arguments": arguments}}


def _turn(turn: Any, number: int) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRecord(f"no message: turn {number} is {type(turn).__name__}")
    if "role" in turn:  # some collections have OpenAI's messages under ShareGPT's name
        return _message(turn, number)
    speaker = turn.get("from")
    role = _FROM.get(speaker, speaker) if isinstance(speaker, str) else None
    if role not in _ROLES:
        known = ", ".join((*_FROM, *_ROLES))
        raise BadRecord(f"unknown speaker: turn {number} is from {speaker!r}; known are {known}")
    return _message({"role": role, "content": turn.get("value")}, number)


def _listed(record: Mapping[str, Any], key: str) -> list[Any]:
    value = record.get(key)
    if not isinstance(value, list):
        raise BadRecord(f'field "{key}" is no list: it is {type(value).__name__}')
    if not value:
        raise BadRecord(f'field "{key}" is empty')
    return value


def _text(record: Mapping[str, Any], key: str) -> str:
    if key not in record:
        raise BadRecord(f'no field "{key}"')
    value = record[key]
    if not isinstance(value, str):
        raise BadRecord(f'field "{key}" is no text: it is {type(value).__name__}')
    return value


def _clean(value: Any) -> Any:
    """JSON may escape half a surrogate pair, which no encoder accepts."""
    if isinstance(value, str):
        return _SURROGATES.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {key: _clean(item) for key, item in value.items()}
    return [_clean(item) for item in value] if isinstance(value, list) else value
