"""Valid JSONs, and how hypothesis breaks them."""

from __future__ import annotations

import copy
import json

from hypothesis import strategies as st

from ds_llama.config import preset, shipped
from ds_llama.config.explain import stories

SEEDS = [json.loads(path.read_text()) for path in sorted(shipped.folder().rglob("*.json"))]
SEEDS += [{"model": preset("tiny").to_hf(), "data": {"train": ["a", {"path": "b"}]}}]
SEEDS += [
    {
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.95]}},
        "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 3}},
        "zero_optimization": {"stage": 3, "zenflow": {"topk_ratio": 0.1}, "leaf_module": {}},
        "activation_checkpointing": {"partition_activations": True},
        "tensor_parallel": {"autotp_size": 2},
        "pipeline": {"stages": 2},
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 2,
        "checkpoint": {"writer": {}},
    }
]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 1e308, 2**63, "auto", "", "none", [], {}, [[]], 0]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=3),
)


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value)
    if isinstance(value, (dict, list)):
        for name, inner in items:
            yield from (
                places(inner, (*path, name)) if isinstance(inner, (dict, list)) else [(*path, name)]
            )


def mutated(tree, random_, value):
    """One place of the tree replaced, renamed or removed."""
    tree = copy.deepcopy(tree)
    *parents, last = random_.choice([path for path in places(tree) if path])
    owner = tree
    for name in parents:
        owner = owner[name]
    how = random_.choice(["replace", "rename", "remove"])
    if how == "replace" or isinstance(owner, list):
        owner[last] = value
    elif how == "rename":
        owner[str(last)[:-1] + "x"] = owner.pop(last)
    else:
        del owner[last]
    return tree


# Every example of docs/lint.md, right and wrong.
EXAMPLES = [json.loads(text) for story in stories().values() for text in story.examples]
