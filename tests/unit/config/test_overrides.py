from __future__ import annotations

import contextlib
import json

from hypothesis import given
from hypothesis import strategies as st

from ds_llama.config import load_run, overrides
from ds_llama.errors import DsLlamaError

NAMES = st.text(st.characters(exclude_characters=".=", exclude_categories=["Z", "C"]), min_size=1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(NAMES, min_size=1, max_size=5), JSON | st.text())
def test_a_json_value_comes_back(path, value):
    parsed = overrides.parse(f"{'.'.join(path)}={json.dumps(value)}")
    assert parsed == overrides.Override(tuple(path), value)


@given(st.text())
def test_any_text_is_a_value_and_never_a_crash(text):
    parsed = overrides.parse(f"a={text}")
    try:
        expected = json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError):
        expected = text
    assert parsed.value == expected


def _no_json(name):
    """NaN and Infinity, which Python's reader takes and JSON does not have: they stay text."""
    raise ValueError(name)


def test_what_is_no_json_is_text():
    for text in ("offline", "NaN", "Infinity", "1e", "a=b", "[1,", ""):
        assert overrides.parse(f"a={text}").value == text


KNOWN = st.sampled_from(
    [
        *("model.preset", "model.vocab_size", "model.rope_parameters.factor", "data.train"),
        *("data.train.0", "data.train.0.weight", "train", "train.steps", "optimizer.betas.1"),
        *("optimizer", "deepspeed", "deepspeed.zero_optimization", "deepspeed.bf16.enabled"),
        *("deepspeed.optimizer.params.lr", "tracking.wandb.tags", "resolved.x", "output"),
    ]
)


@given(st.lists(st.tuples(KNOWN, JSON | st.text(max_size=5)), max_size=4))
def test_any_overrides_give_a_run_or_one_of_our_errors(pairs):
    tree = {"model": {"preset": "tiny"}, "data": {"train": [{"path": "a"}]}, "deepspeed": {}}
    texts = [f"{key}={json.dumps(value)}" for key, value in pairs]
    with contextlib.suppress(DsLlamaError):
        assert load_run(tree, *texts).model
