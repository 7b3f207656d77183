"""JSON Schema 2020-12 of the DeepSpeed JSON and of runs, for editors: made from what lint checks.

A schema says which keys there are and what fits them. What depends on another key (the stage, the
device, the batch) is in the rules only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ds_llama.config.deepspeed import FILLED, SCHEMA, VERSION, Dialect
from ds_llama.config.keys import Key, Section
from ds_llama.config.keys_training import OPTIMIZERS, SCHEDULERS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TYPES: dict[str, dict[str, Any]] = {
    "bool": {"type": "boolean"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "str": {"type": "string"},
    "strings": {"type": "array", "items": {"type": "string"}},
    "numbers": {"type": "array", "items": {"type": "number"}},
    "list": {"type": "array"},
    "object": {"type": "object"},
    "any": {},
}
_AUTO = {"const": "auto"}


Auto = Callable[[str], bool]
"""Whether "auto" fits at a dotted key, beside where DeepSpeed itself reads it."""


def of_deepspeed(dialect: Dialect = "deepspeed") -> dict[str, Any]:
    """Of a DeepSpeed JSON, with "auto" where whoever reads the dialect fills it in."""
    auto: Auto = {
        "deepspeed": lambda key: False,
        "huggingface": lambda key: key in FILLED,
        "run": lambda key: True,
    }[dialect]
    schema = _section(SCHEMA, "", auto)
    for name, sections in (("optimizer", OPTIMIZERS), ("scheduler", SCHEDULERS)):
        schema["properties"][name]["allOf"] = [
            _parameters(kind, section, name, auto) for kind, section in sections.items()
        ]
    title = f"DeepSpeed {VERSION} configuration"
    return {"$schema": DIALECT, "title": title, **schema}


def of_run() -> dict[str, Any]:
    """Of a run JSON, the DeepSpeed JSON inside included."""
    from ds_llama.config.model import NOT_ARCHITECTURE, LlamaConfig
    from ds_llama.config.run import SOURCES, Run

    schema = _mended(Run.model_json_schema())
    properties, definitions = schema["properties"], schema["$defs"]
    inline = {name: value for name, value in of_deepspeed("run").items() if name != "$schema"}
    properties["deepspeed"] = {"anyOf": [{"type": "string"}, inline, {"type": "null"}]}
    schema["required"].remove("deepspeed")
    properties["optimizer"] = {"anyOf": [_optimizer(), {"type": "null"}]}
    several = definitions["DataConfig"]["properties"]["train"]["oneOf"][1]
    several["items"] = {"anyOf": [several["items"], {"type": "string"}]}

    architecture = _mended(LlamaConfig.model_json_schema())
    definitions |= architecture.pop("$defs", {})
    source = definitions.pop("ModelSource")["properties"]
    keys = {name: {} for name in NOT_ARCHITECTURE} | architecture["properties"]
    keys |= {name: source[name] for name in SOURCES}
    inline = {"type": "object", "properties": keys, "additionalProperties": False}
    properties["model"] = {"anyOf": [{"type": "string"}, inline]}
    del definitions["_NoSuchType"]
    return {"$schema": DIALECT, **schema, "title": "ds_llama run"}


def _optimizer() -> dict[str, Any]:
    """The keys of the type that is named, and of AdamW where none is."""
    from ds_llama.config.optimizer import TYPES

    kinds = [
        {
            "if": {"properties": {"type": {"const": kind}}} | ({} if default else _NAMED),
            "then": {"$ref": f"#/$defs/{kind}"},
        }
        for kind in TYPES
        for default in [kind == "AdamW"]
    ]
    return {"type": "object", "properties": {"type": {"enum": [*TYPES]}}, "allOf": kinds}


_NAMED = {"required": ["type"]}


def _mended(schema: Any) -> Any:
    """pydantic's schema, with the one word of it that JSON Schema spells in another way."""
    if isinstance(schema, dict):
        return {_SPELLED.get(name, name): _mended(value) for name, value in schema.items()}
    return [_mended(value) for value in schema] if isinstance(schema, list) else schema


_SPELLED = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum"}


def _section(section: Section, path: str, auto: Auto) -> dict[str, Any]:
    properties = {
        name: _section(entry, f"{path}{name}.", auto)
        if isinstance(entry, Section)
        else _key(entry, auto(f"{path}{name}"))
        for name, entry in section.keys.items()
    }
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if not section.free:
        schema["additionalProperties"] = False
    if section.null:
        schema["type"] = ["object", "null"]
    return schema | _words(section)


def _key(key: Key, auto: bool) -> dict[str, Any]:
    forms = [_TYPES[kind] | _bounds(key, kind) for kind in key.kind.split("|")]
    if key.choices:
        spelled = {s for c in key.choices for s in (c, c.lower(), c.upper(), c.capitalize())}
        forms = [{"enum": sorted(spelled)}]
    if auto or key.auto:
        forms.append(_AUTO)
    if key.null or key.default is None:
        forms.append({"type": "null"})
    schema = forms[0] if len(forms) == 1 else {"anyOf": forms}
    default = {} if key.default is None else {"default": key.default}
    return schema | default | _words(key)


def _bounds(key: Key, kind: str) -> dict[str, Any]:
    if kind not in ("int", "float"):
        return {}
    bounds = {"minimum": key.low, "exclusiveMinimum": key.above, "maximum": key.high}
    return {name: bound for name, bound in bounds.items() if bound is not None}


def _words(entry: Key | Section) -> dict[str, Any]:
    """What an editor shows beside the key."""
    said = [entry.gone] if entry.gone else []
    if isinstance(entry, Key) and entry.same_as:
        said.append(f"another name of {entry.same_as}")
    if entry.stages is not None:
        stages = ", ".join(str(stage) for stage in sorted(entry.stages))
        said.append(f"read at ZeRO stage {stages}" if stages else "read nowhere")
    words: dict[str, Any] = {"description": "; ".join(said)} if said else {}
    return words | ({"deprecated": True} if entry.gone else {})


def _parameters(kind: str, section: Section, owner: str, auto: Auto) -> dict[str, Any]:
    """`params` of one type; DeepSpeed compares the names of its optimizers without case."""
    name = {"const": kind}
    if owner == "optimizer":
        either = "".join(f"[{c.lower()}{c.upper()}]" for c in kind)
        name = {"pattern": f"^{either}$"}
    parameters = _section(section, f"{owner}.params.", auto) | {"type": ["object", "null"]}
    return {
        "if": {"properties": {"type": name}, "required": ["type"]},
        "then": {"properties": {"params": parameters}},
    }
