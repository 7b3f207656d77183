"""Where in a rendered chat the learnt turns stand: what the model itself would have to write.

A turn's text is what the chat has beyond its prompt, the messages before it rendered with
`add_generation_prompt`, up to the end of the turn:

    <|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\nhello<|im_end|>\\n
    └──────────────── the prompt at inference ────────────┘└── learnt ──┘

The control token that ends the turn is learnt, for without it an answer would not end; white space
that a template writes after it is not, for generation has stopped by then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from ds_llama.data.chat.records import BadRecord, Chat, Message
from ds_llama.data.chat.template import BEGIN, END, Template

Span = tuple[int, int]
_MARKED = re.compile(f"{BEGIN}(.*?){END}", re.DOTALL)


def render(
    chat: Chat, template: Template, ends_turn: Callable[[str], bool]
) -> tuple[str, list[Span]]:
    """The rendered chat and the learnt part of it, one span a learnt turn.

    `ends_turn`: whether a text ends with a control token. Raises BadRecord where a span cannot be
    told, or the template leaves out something of a message.
    """
    if template.marks_answers:
        text, spans = _marked(template.render(chat.messages, chat.tools))
        spans = _learnt_of(spans, chat.learnt, [m["role"] == "assistant" for m in chat.messages])
    else:
        text = template.render(chat.messages, chat.tools)
        spans = [
            _turn(chat, at, text, template, ends_turn) for at, yes in enumerate(chat.learnt) if yes
        ]
    _require_all(chat, text, spans)
    return text, spans


def _turn(
    chat: Chat, at: int, text: str, template: Template, ends_turn: Callable[[str], bool]
) -> Span:
    prompt = template.render(chat.messages[:at], chat.tools, add_generation_prompt=True)
    after = at + 1
    whole = (
        text if after == len(chat.messages) else template.render(chat.messages[:after], chat.tools)
    )
    if not text.startswith(prompt) or not text.startswith(whole) or len(prompt) >= len(whole):
        raise BadRecord(
            "the chat template renders a turn otherwise than after its prompt, or otherwise when "
            f"more follows: message {after}; the template itself could say what is learnt, by "
            "{% generation %}"
        )
    end = len(whole.rstrip())
    return len(prompt), end if end > len(prompt) and ends_turn(whole[:end]) else len(whole)


def _marked(text: str) -> tuple[str, list[Span]]:
    """The text without marks, and where they stood."""
    spans, parts, at, length = [], [], 0, 0
    for found in _MARKED.finditer(text):
        before = text[at : found.start()]
        start = length + len(before)
        parts += [before, found[1]]
        length = start + len(found[1])
        spans.append((start, length))
        at = found.end()
    return "".join([*parts, text[at:]]), spans


def _learnt_of(spans: list[Span], learnt: Sequence[bool], assistant: Sequence[bool]) -> list[Span]:
    """Those of the turns that are learnt, which is told by order."""
    of_assistant = [yes for yes, role in zip(learnt, assistant, strict=True) if role]
    if all(of_assistant):
        return spans
    if len(spans) != len(of_assistant):
        raise BadRecord(
            "the chat template marks other answers than the record has, of which some are not "
            f"learnt: {len(spans)} and {len(of_assistant)}"
        )
    return [span for span, yes in zip(spans, of_assistant, strict=True) if yes]


def _said(message: Message) -> list[str]:
    keys = ("instruction", "input") if "instruction" in message else ("content",)
    called = [call["function"]["name"] for call in message.get("tool_calls", ())]
    return [*(message[key] for key in keys if key in message), *called]


def _is_in(text: str, part: str) -> bool:
    """As it is, or as JSON writes it, which templates do with the results of tools."""
    return part in text or json.dumps(part, ensure_ascii=False)[1:-1] in text


def _require_all(chat: Chat, text: str, spans: Sequence[Span]) -> None:
    """What was given is there: a template that has no place for it says nothing."""
    for number, message in enumerate(chat.messages, 1):
        if not all(_is_in(text, part.strip()) for part in _said(message)):
            raise BadRecord(
                f"the chat template leaves out a message or changes it: message {number}"
            )
    for tool in chat.tools or ():
        name = (tool.get("function") or tool).get("name") if isinstance(tool, dict) else None
        if not isinstance(name, str) or name not in text:
            raise BadRecord("the chat template has no place for tools")
    if not any(end > start for start, end in spans):
        raise BadRecord("the chat template marks nothing to learn")
