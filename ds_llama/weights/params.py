"""Meta's params.json, and the network that it and the shapes of the weights describe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ds_llama.config.files import read_object
from ds_llama.config.model import LlamaConfig, from_mapping
from ds_llama.errors import ConfigError

NAME = "params.json"
_NEEDED = ("dim", "n_layers", "n_heads", "norm_eps")
_OPTIONAL = ("n_kv_heads", "rope_theta", "rope_scale_factor")


def read(folder: Path) -> Mapping[str, Any]:
    """What a folder's params.json says. Raises ConfigError for a number that is missing or none."""
    params = read_object(folder / NAME)
    params = params.get("model", params)
    for key in _NEEDED:
        if not isinstance(params, Mapping) or not isinstance(params.get(key), (int, float)):
            raise ConfigError(
                f"{NAME} says no {key}",
                where=f"{folder / NAME}:{key}",
                remedy="take the params.json that came with the weights",
            )
    said = {key: value for key, value in params.items() if value is not None}
    for key in _OPTIONAL:
        if type(said.get(key, 0)) not in (int, float):
            raise ConfigError(
                f"{NAME} says {key} is {said[key]!r}, which is no number",
                where=f"{folder / NAME}:{key}",
                remedy="take the params.json that came with the weights",
            )
    return said


def key_heads(params: Mapping[str, Any]) -> int:
    """Heads of the keys and values."""
    return int(params.get("n_kv_heads") or params["n_heads"])


def network(
    params: Mapping[str, Any], *, vocab_size: int, intermediate_size: int, tied: bool, where: Path
) -> LlamaConfig:
    """The config of a release; what is not in params.json comes from the weights.

    vocab_size is often -1 there, and the feed-forward width a rule that has changed. Raises
    ConfigErrors for numbers that make no network.
    """
    third = vocab_size >= 128_000
    keys = {
        "vocab_size": vocab_size,
        "hidden_size": params["dim"],
        "intermediate_size": intermediate_size,
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": params["n_heads"],
        "num_key_value_heads": key_heads(params),
        "rms_norm_eps": params["norm_eps"],
        "rope_theta": float(params.get("rope_theta", 10_000.0)),
        "max_position_embeddings": _context(params),
        "tie_word_embeddings": tied,
        "bos_token_id": 128_000 if third else 1,
        "eos_token_id": 128_001 if third else 2,
    }
    if params.get("use_scaled_rope"):
        keys["rope_scaling"] = _scaling(params, tied)
    return from_mapping(keys, path=str(where / NAME), strict=False)


def _context(params: Mapping[str, Any]) -> int:
    """Tokens that the release was trained for, which params.json does not say.

    By what the files of 3.1 and later, Code Llama, 3, 2 and 1 differ in (LLaMA-65B says 1e-5 too,
    and is taken for a 2). Nothing is computed from it but defaults: config.json can be edited.
    """
    theta = params.get("rope_theta", 10_000.0)
    if params.get("use_scaled_rope"):
        return 131_072
    if theta > 10_000.0:
        return 16_384 if theta >= 1_000_000.0 else 8192
    return 4096 if params["norm_eps"] >= 1e-5 else 2048


def _scaling(params: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    """Llama 3.1's constants; 3.2, which is tied, has another factor in its own config.json."""
    return {
        "rope_type": "llama3",
        "factor": float(params.get("rope_scale_factor", 32.0 if tied else 8.0)),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
