"""A LLaMA as Meta releases and computes it: what the importer is compared with."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    import transformers

NAMES = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
}
COLUMNS = ("attention.wo", "feed_forward.w2")


def translated(model: transformers.LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """Its weights in Meta's names and order; the heads' rows by transformers' own operation."""
    from transformers.core_model_loading import PermuteForRope  # seconds

    found = {}
    for name, tensor in model.state_dict().items():
        key = name_of(name)
        heads = {
            "wq": model.config.num_attention_heads,
            "wk": model.config.num_key_value_heads,
        }.get(key.split(".")[-2])
        if heads:
            config = SimpleNamespace(num_attention_heads=heads)
            tensor = PermuteForRope(inverse=True)._permute_for_rope(tensor, config)
        found[key] = tensor.clone()
    for name in ("rope.freqs", "layers.0.attention.inner_attention.rope.freqs"):
        found[name] = torch.ones(model.config.head_dim // 2)
    return found


def release(
    model: transformers.LlamaForCausalLM,
    folder: Path,
    *,
    parts: int = 1,
    embedding_along: int = 1,
    **keys: Any,
) -> dict[str, torch.Tensor]:
    """Write the model as Meta does, in `parts`; its whole tensors in Meta's names."""
    folder.mkdir(parents=True)
    config, whole = model.config, translated(model)
    for rank in range(parts):
        own = {name: part(name, t, rank, parts, embedding_along) for name, t in whole.items()}
        torch.save(own, folder / f"consolidated.{rank:02d}.pth")
    params = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "multiple_of": 256,
        "norm_eps": config.rms_norm_eps,
        "vocab_size": -1,
        **keys,
    }
    (folder / "params.json").write_text(json.dumps(params))
    return whole


def name_of(name: str) -> str:
    """Meta's name of one of Hugging Face's tensors."""
    for theirs, metas in (("model.layers.", "layers."), *NAMES.items()):
        name = name.replace(theirs, metas)
    return name


def part(
    name: str, tensor: torch.Tensor, rank: int, parts: int, embedding_along: int
) -> torch.Tensor:
    """What a model-parallel rank has of a tensor that is called `name` by Meta."""
    if tensor.dim() == 1:
        return tensor
    along = 1 if any(key in name for key in COLUMNS) else 0
    if name.startswith("tok_embeddings"):
        along = embedding_along
    return tensor.chunk(parts, along)[rank].clone()


def logits(
    weights: dict[str, torch.Tensor],
    params: dict[str, Any],
    ids: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """Forward in Meta's convention, fp64: a head's neighbours are complex numbers, and turn."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    heads, groups, size = params["n_heads"], params["n_kv_heads"], ids.shape
    turns = torch.polar(
        torch.ones(1, dtype=torch.float64), torch.outer(positions.double(), _angles(params))
    )[None, :, None]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean = x.pow(2).mean(-1, keepdim=True)
        return x * torch.rsqrt(mean + params["norm_eps"]) * w[f"{name}.weight"]

    def turned(x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turns).flatten(-2)

    h = w["tok_embeddings.weight"][ids]
    for layer in range(params["n_layers"]):
        name = f"layers.{layer}"
        x = norm(h, f"{name}.attention_norm")
        q, k, v = (
            (x @ w[f"{name}.attention.w{kind}.weight"].T).view(*size, count, -1)
            for kind, count in (("q", heads), ("k", groups), ("v", groups))
        )
        q, k = turned(q), turned(k)
        k, v = (t.repeat_interleave(heads // groups, 2) for t in (k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        future = torch.ones(size[1], size[1], dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, -math.inf).softmax(-1)
        x = torch.einsum("bhqk,bkhd->bqhd", mixed, v).flatten(-2)
        h = h + x @ w[f"{name}.attention.wo.weight"].T
        x = norm(h, f"{name}.ffn_norm")
        one, two, three = (w[f"{name}.feed_forward.w{n}.weight"] for n in (1, 2, 3))
        h = h + (functional.silu(x @ one.T) * (x @ three.T)) @ two.T
    return norm(h, "norm") @ w["output.weight"].T


def _angles(params: dict[str, Any]) -> torch.Tensor:
    """Radians a position of each pair; long waves are slowed where `use_scaled_rope` says so."""
    size = params["dim"] // params["n_heads"]
    exponents = torch.arange(0, size, 2, dtype=torch.float64) / size
    angles = 1.0 / params.get("rope_theta", 10_000.0) ** exponents
    if not params.get("use_scaled_rope"):
        return angles
    found = []
    for angle in angles.tolist():
        wave, factor = 2 * math.pi / angle, params["rope_scale_factor"]
        smooth = min(max((8192 / wave - 1.0) / (4.0 - 1.0), 0.0), 1.0)
        found.append((1 - smooth) * angle / factor + smooth * angle)
    return torch.tensor(found, dtype=torch.float64)
