"""From a run's `model` section to a LlamaConfig: preset, config.json, pretrained, or inline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ds_llama.config.files import read_object
from ds_llama.config.model import LlamaConfig, from_mapping
from ds_llama.config.problems import at, did_you_mean, raise_errors
from ds_llama.config.run import MODEL_KEYS, SOURCES
from ds_llama.config.sizes import raw_preset
from ds_llama.errors import ConfigError

_ROPE = ("rope_parameters", "rope_scaling", "rope_theta")


def read_model(section: Any, *, path: str, base: Path) -> LlamaConfig | None:
    """The architecture that `section` describes; None for hub weights that are not here.

    path: the run's name in messages. base: the folder that `config` is relative to. Raises
    ConfigErrors with `path:model.KEY`, CallError for a config.json that is missing or no JSON.
    """
    if not isinstance(section, Mapping) or not section:
        raise ConfigError(
            "the run names no model",
            where=at(path, "model"),
            remedy='write {"preset": "llama-3.2-1b"}, {"config": FILE} or {"pretrained": FOLDER}',
        )
    named = [name for name in SOURCES if section.get(name) is not None]
    keys = {name: value for name, value in section.items() if name not in SOURCES}
    _check_names(named, keys, path)
    if not named:
        return from_mapping(keys, path=path, strict=True, prefix="model")
    value, where = section[named[0]], at(path, f"model.{named[0]}")
    if named[0] == "config" and isinstance(value, Mapping):
        return from_mapping(_over(value, keys), path=path, strict=True, prefix="model.config")
    if not isinstance(value, str) or not value:
        remedy = f'write "{named[0]}": "…"'
        raise ConfigError(f"{named[0]} is {value!r}, not a string", where=where, remedy=remedy)
    if named[0] == "preset":
        raw = _over(raw_preset(value, where=where), keys)
        return from_mapping(raw, path=path, strict=True, prefix="model")
    if named[0] == "pretrained":
        here = (Path(value) / "config.json").is_file()
        return _grown(LlamaConfig.from_hf(value), keys, path) if here else None
    return _from_file(base / value, keys, path)


def _grown(config: LlamaConfig, keys: Mapping[str, Any], path: str) -> LlamaConfig:
    """A pretrained network, with a larger vocabulary where the run says so."""
    grown = from_mapping({**config.to_hf(), **keys}, path=path, strict=False, prefix="model")
    if grown.vocab_size < config.vocab_size:
        raise ConfigError(
            f"vocab_size is {grown.vocab_size}, and the pretrained weights have "
            f"{config.vocab_size} rows, none of which is taken away",
            where=at(path, "model.vocab_size"),
            remedy=f"leave it out, or write {config.vocab_size} or more",
        )
    return grown


def _from_file(file: Path, keys: Mapping[str, Any], path: str) -> LlamaConfig:
    """A config.json as it is found in the wild, with the run's keys over it."""
    if not keys:
        return LlamaConfig.from_hf(file)
    raw = read_object(file / "config.json" if file.is_dir() else file)
    known = {name: raw[name] for name in raw if name in MODEL_KEYS}
    rope_changed = any(name in keys for name in _ROPE)
    return from_mapping(_over(known, keys), path=path, strict=rope_changed, prefix="model")


def _check_names(named: list[str], keys: Mapping[str, Any], path: str) -> None:
    errors = []
    if len(named) > 1:
        both = " and ".join(repr(name) for name in named)
        remedy = f"keep one of {both}"
        errors.append(ConfigError(f"{both} together", where=at(path, "model"), remedy=remedy))
    fixed = sorted(keys.keys() - {"vocab_size"})
    if named == ["pretrained"] and fixed:
        errors.append(
            ConfigError(
                f"pretrained weights have their own architecture; {', '.join(fixed)} "
                "cannot change it",
                where=at(path, f"model.{fixed[0]}"),
                remedy="remove the keys beside 'pretrained'; only vocab_size may be there",
            )
        )
    for name in sorted(keys.keys() - MODEL_KEYS):
        errors.append(
            ConfigError(
                f"unknown key {name!r}",
                where=at(path, f"model.{name}"),
                remedy=did_you_mean(name, MODEL_KEYS),
            )
        )
    raise_errors(errors)


def _over(base: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """`keys` over a config.json; RoPE key by key as long as its type stays the same."""
    result = {**base, **{name: keys[name] for name in keys if name not in _ROPE}}
    if keys.get("rope_scaling") is not None:
        result.pop("rope_parameters", None)
        result["rope_scaling"] = keys["rope_scaling"]
        result["rope_theta"] = _theta(base)
    inner = result.get("rope_parameters")
    if "rope_parameters" in keys:
        result.pop("rope_scaling", None)
        inner = _merged_rope(base, keys["rope_parameters"])
        result["rope_parameters"] = inner
    if "rope_theta" in keys:
        result["rope_theta"] = keys["rope_theta"]
        if isinstance(inner, Mapping):
            result["rope_parameters"] = {**inner, "rope_theta": keys["rope_theta"]}
    return result


def _merged_rope(base: Mapping[str, Any], rope: Any) -> Any:
    old = base.get("rope_parameters") or base.get("rope_scaling") or {}
    if not isinstance(rope, Mapping) or not isinstance(old, Mapping):
        return rope
    kind = rope.get("rope_type", rope.get("type"))
    same = kind in (None, old.get("rope_type", old.get("type", "default")))
    kept = old if same else {}
    return {"rope_theta": _theta(base), **kept, **rope}


def _theta(base: Mapping[str, Any]) -> Any:
    inner = base.get("rope_parameters")
    theta = inner.get("rope_theta") if isinstance(inner, Mapping) else None
    return base.get("rope_theta") if theta is None else theta
