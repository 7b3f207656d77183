"""What a LLaMA is, in the words of Hugging Face's config.json; sizes and FLOPs derived from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from ds_llama.config.base import Frozen, Real, Whole, problems_of
from ds_llama.config.files import read_object
from ds_llama.config.problems import Problem, did_you_mean, nearest, raise_errors
from ds_llama.config.rope import RopeParameters, read_rope
from ds_llama.errors import ConfigErrors

# Keys of a config.json that do not describe the network: known, so that they are no typing mistake.
NOT_ARCHITECTURE = frozenset(
    (
        *("model_type", "architectures", "torch_dtype", "dtype", "transformers_version"),
        *("use_cache", "pretraining_tp", "_name_or_path", "quantization_config"),
        *("rope_theta", "rope_scaling", "partial_rotary_factor"),
    )
)


class LlamaConfig(Frozen):
    """A LLaMA's architecture. Attributes are config.json's keys, defaults are transformers'.

    Raises ConfigErrors with every problem at once. `head_dim` times `num_attention_heads` need
    not be `hidden_size`.
    """

    model_config = ConfigDict(title="model")

    vocab_size: Whole = Field(default=32000, gt=0)
    hidden_size: Whole = Field(default=4096, gt=0)
    intermediate_size: Whole = Field(default=11008, gt=0)
    num_hidden_layers: Whole = Field(default=32, gt=0)
    num_attention_heads: Whole = Field(default=32, gt=0)
    # Both are filled from the others before validation when they are absent or null.
    num_key_value_heads: Whole = Field(default=0, gt=0)
    head_dim: Whole = Field(default=0, gt=0)
    hidden_act: Literal["silu"] = "silu"
    max_position_embeddings: Whole = Field(default=2048, gt=0)
    rms_norm_eps: Real = Field(default=1e-6, gt=0)
    initializer_range: Real = Field(default=0.02, ge=0, le=1)
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: Real = Field(default=0.0, ge=0, lt=1)
    bos_token_id: Whole | None = 1
    eos_token_id: Whole | list[Whole] | None = 2
    pad_token_id: Whole | None = None
    rope_parameters: RopeParameters = RopeParameters()

    @model_validator(mode="wrap")
    @classmethod
    def _check(
        cls, data: Any, handler: ModelWrapValidatorHandler[LlamaConfig], info: ValidationInfo
    ) -> LlamaConfig:
        place = {"path": "LlamaConfig", "prefix": "", **(info.context or {})}
        path, prefix = place["path"], place["prefix"]
        derived = False
        if isinstance(data, Mapping):
            derived = data.get("head_dim") is None
            data = _filled(data)
        try:
            config = handler(data)
        except ValidationError as error:
            found = problems_of(error, LlamaConfig, prefix)
            raise ConfigErrors([problem.to_error(path) for problem in found]) from None
        problems = [*_shape_problems(config, derived), *config.rope_parameters.problems()]
        raise_errors([problem.to_error(path, prefix) for problem in problems])
        return config

    @classmethod
    def from_hf(cls, source: Mapping[str, Any] | str | Path) -> LlamaConfig:
        """From a config.json: the dict, the file, or its folder.

        Keys that do not describe the network are ignored, as transformers does. Raises CallError
        for a missing file, ConfigErrors for a network that is not a LLaMA as built here.
        """
        if isinstance(source, Mapping):
            return from_mapping(source, path="config.json", strict=False)
        path = Path(source)
        path = path / "config.json" if path.is_dir() else path
        return from_mapping(read_object(path), path=str(path), strict=False)

    def to_hf(self) -> dict[str, Any]:
        """The config.json of transformers 5: `LlamaConfig(**config.to_hf())` is this network."""
        values = self.model_dump()
        values["rope_parameters"] = self.rope_parameters.to_hf()
        return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **values}

    @property
    def attention_size(self) -> int:
        """Width of the queries: heads times head_dim."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of the keys, and of the values."""
        return self.num_key_value_heads * self.head_dim

    @property
    def num_block_parameters(self) -> int:
        """Parameters of one transformer block: four projections, three of the MLP, two norms."""
        biases = 0
        if self.attention_bias:
            biases += self.attention_size + 2 * self.key_value_size + self.hidden_size
        if self.mlp_bias:
            biases += 2 * self.intermediate_size + self.hidden_size
        return self._block_matmul_parameters + biases + 2 * self.hidden_size

    @property
    def num_embedding_parameters(self) -> int:
        """Parameters of the token embedding; the LM head has as many."""
        return self.vocab_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """All parameters; tied embeddings count once."""
        embeddings = self.num_embedding_parameters * (1 if self.tie_word_embeddings else 2)
        blocks = self.num_hidden_layers * self.num_block_parameters
        return embeddings + blocks + self.hidden_size

    @property
    def num_matmul_parameters(self) -> int:
        """Weights that a token is multiplied with: the LM head in, the embedding look-up out."""
        blocks = self.num_hidden_layers * self._block_matmul_parameters
        return blocks + self.num_embedding_parameters

    @property
    def _block_matmul_parameters(self) -> int:
        attention = 2 * self.hidden_size * (self.attention_size + self.key_value_size)
        return attention + 3 * self.hidden_size * self.intermediate_size

    def flops_per_token(self, sequence_length: int) -> int:
        """Model FLOPs of one trained token, forward and backward, nothing recomputed.

        6 x matmul parameters + 6 x layers x heads x head_dim x tokens: causal attention, forward
        2, backward 4, half the square (Kaplan et al. 2020 section 2.1; PaLM appendix B, halved).
        """
        attention = 6 * self.num_hidden_layers * self.attention_size * sequence_length
        return 6 * self.num_matmul_parameters + attention


def from_mapping(
    raw: Mapping[str, Any], *, path: str, strict: bool, prefix: str = ""
) -> LlamaConfig:
    """`LlamaConfig` of a mapping in config.json's words.

    Messages name `path` and the key, `prefix` put before it.

    `strict` is for what a person wrote for this package: an unknown key is an error there. Without
    it only a key that misspells one of the network's is.
    """
    rope, problems = read_rope(raw, strict=strict)
    problems += list(_foreign(raw))
    fields = set(LlamaConfig.model_fields)
    values = {key: raw[key] for key in raw if key in fields - {"rope_parameters"}}
    for key in raw.keys() - fields - NOT_ARCHITECTURE:
        meant = nearest(key, fields, cutoff=0.9)
        if strict or (meant and meant not in raw):
            remedy = did_you_mean(key, fields)
            problems.append(Problem("unknown-key", "error", key, f"unknown key {key!r}", remedy))
    raise_errors([problem.to_error(path, prefix) for problem in problems])
    if rope:
        values["rope_parameters"] = rope
    return LlamaConfig.model_validate(values, context={"path": path, "prefix": prefix})


def _filled(data: Mapping[str, Any]) -> dict[str, Any]:
    """`num_key_value_heads` and `head_dim` from the others, when those allow it."""
    values = {**data}
    heads = values.get("num_attention_heads", 32)
    if values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = heads
    if values.get("head_dim") is None:
        hidden = values.get("hidden_size", 4096)
        countable = isinstance(hidden, int) and isinstance(heads, int) and heads > 0
        # A wrong hidden_size or head count is reported by its own field.
        values["head_dim"] = max(hidden // heads, 1) if countable else 2
    if values.get("pad_token_id") == -1:  # published LLaMA-1 conversions write -1 for "none"
        values["pad_token_id"] = None
    return values


def _shape_problems(config: LlamaConfig, derived_head_dim: bool) -> Iterator[Problem]:
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    if heads % groups:
        yield Problem(
            "model-heads",
            "error",
            "num_key_value_heads",
            f"num_key_value_heads ({groups}) does not divide num_attention_heads ({heads})",
            f"take one of {', '.join(str(n) for n in range(1, heads + 1) if heads % n == 0)}",
        )
    if derived_head_dim and config.hidden_size % heads:
        yield Problem(
            "model-hidden-size",
            "error",
            "hidden_size",
            f"hidden_size ({config.hidden_size}) is not a multiple of num_attention_heads "
            f"({heads})",
            f"take {config.hidden_size // heads * heads or heads}, or give head_dim yourself",
        )
    elif config.head_dim % 2:
        yield Problem(
            "model-head-dim",
            "error",
            "head_dim",
            f"head_dim ({config.head_dim}) is odd; rotary embedding turns pairs",
            f"take an even head_dim; hidden_size {config.hidden_size} over {heads} heads "
            f"is {config.hidden_size / heads:g}",
        )


def _foreign(raw: Mapping[str, Any]) -> Iterator[Problem]:
    kind = raw.get("model_type", "llama")
    if kind != "llama":
        yield Problem(
            "model-type",
            "error",
            "model_type",
            f"model_type is {kind!r}; this package builds 'llama'",
            "take a config.json whose model_type is 'llama'",
        )
    if raw.get("quantization_config"):
        yield Problem(
            "model-quantized",
            "error",
            "quantization_config",
            "the weights are quantized; ZeRO trains bf16, fp16 or fp32 weights",
            "take the unquantized model, and remove quantization_config",
        )
