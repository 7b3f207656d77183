"""Chat templates, rendered by jinja2 as transformers does (`utils/chat_template_utils.py`).

Not by transformers itself, whose import costs seconds in every worker; a test holds what is
rendered to be equal. The templates come from anywhere, so they run in jinja2's sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from ds_llama.data.chat.records import BadRecord, Message
from ds_llama.data.fingerprint import read_json
from ds_llama.errors import CallError, DataError

_SHIPPED = Path(__file__).with_name("templates")
_CONFIG = "tokenizer_config.json"
# Private-use characters around what a template marks as the assistant's.
BEGIN, END = "\U000f0002", "\U000f0003"
_REASONING = ("reasoning_content", "thinking", "reasoning")


class Template:
    """One template, compiled. `where` names it in errors, `names` are the special tokens' texts."""

    def __init__(self, source: str, where: str, names: Mapping[str, str]) -> None:
        self.source, self.where, self._names = source, where, dict(names)
        environment = _environment()
        try:
            self._compiled = environment.from_string(source)
            tree = environment.parse(source)
        except TemplateError as error:
            raise DataError(
                f"the chat template is no jinja: {error}",
                where=where,
                remedy="give a template as transformers' apply_chat_template takes it",
            ) from error
        texts = {node.data for node in tree.find_all(jinja2.nodes.TemplateData)}
        constants = (node.value for node in tree.find_all(jinja2.nodes.Const))
        texts |= {value for value in constants if isinstance(value, str)}
        self.literal_text = "\0".join(texts)
        used = tree.find_all(jinja2.nodes.ExtensionAttribute)
        self.marks_answers = any(node.identifier == _Generation.identifier for node in used)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        """What a template marks with `{% generation %}` stands between BEGIN and END.

        Raises BadRecord with the template's own words when it refuses the messages.
        """
        try:
            return self._compiled.render(
                messages=[_with_reasoning(message) for message in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._names,
            )
        except Exception as error:  # a template is a program of someone else's
            raise BadRecord(f"the chat template fails: {error}") from error


def find_template(named: str | None, folder: Path) -> tuple[str, str] | None:
    """The source of a template and its place: a shipped name, a file, or the tokenizer's own.

    Raises `CallError` for a file that is not there.
    """
    if named is None:
        return _own(folder)
    shipped = _SHIPPED / f"{named}.jinja"
    path = shipped if shipped.is_file() else Path(named)
    if not path.is_file():
        raise CallError(
            f"there is no chat template {named}",
            where="--chat-template",
            remedy=f"name a jinja file, or one of {', '.join(shipped_templates())}",
        )
    return path.read_text("utf-8"), str(path)


def shipped_templates() -> list[str]:
    return sorted(path.stem for path in _SHIPPED.glob("*.jinja"))


def _own(folder: Path) -> tuple[str, str] | None:
    """As transformers: `chat_template.jinja` wins over the config, which may name several."""
    file, config = folder / "chat_template.jinja", folder / _CONFIG
    if file.is_file():
        return file.read_text("utf-8"), str(file)
    found = read_json(config).get("chat_template")
    if isinstance(found, list):
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    return (found, str(config)) if isinstance(found, str) else None


def _with_reasoning(message: Message) -> Message:
    """A message's reasoning under each of the names that templates read it by."""
    found = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    if found is None:
        return message
    return {"thinking": found, **message, "reasoning_content": found}


class _Generation(jinja2.ext.Extension):
    tags = {"generation"}  # noqa: RUF012, as the base class has it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_mark")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _mark(self, caller: Any) -> str:
        return f"{BEGIN}{caller()}{END}"


class _Namespace(Namespace):
    """Without names that begin with an underscore, which lead out of the sandbox."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, rest = args[0], args[1:]
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _require_plain(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_plain(name)
        Namespace.__setitem__(self, name, value)


class _Dict:
    """`dict` in a template: makes one, and has no way to Python's own type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _require_plain(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace may not hold {name!r}")


def _environment() -> ImmutableSandboxedEnvironment:
    """`strftime_now` is left out, so that ids do not depend on the day: templates that tell the
    date have one of their own for where it is not defined."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=_refuse, dict=_Dict(), namespace=_Namespace)
    return environment


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own escapes HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
