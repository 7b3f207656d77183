from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from ds_llama.data.tokenizer import load_tokenizer, train_tokenizer
from ds_llama.errors import CallError, CheckpointError, ConfigError, DataError, ModelError
from ds_llama.model.llama import Llama
from ds_llama.weights import meta, params
from ds_llama.weights.convert import convert_folder
from ds_llama.weights.load import load_pretrained_, read_config
from tests.unit.data.conftest import sentences
from tests.unit.weights.metas import logits, release

# Far apart, so that long waves turn by radians: without scaling the logits are others.
POSITIONS = torch.arange(64) * 100
EVEN = {"vocab_size": 96, "max_position_embeddings": 131_072}
SCALED = {"use_scaled_rope": True, "rope_scale_factor": 32.0}
TIKTOKEN = Path(__file__).parents[1] / "data" / "tiktoken"
RELEASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama-1": ({"num_key_value_heads": 4}, {"n_kv_heads": None}),
    "llama-2-in-two": ({"num_key_value_heads": 4}, {"parts": 2}),
    "llama-3-in-two": (
        {"rope_parameters": {"rope_theta": 5e5}},
        {"parts": 2, "embedding_along": 0, "rope_theta": 5e5},
    ),
    "llama-3.2": ({"tie_word_embeddings": True}, {"rope_theta": 5e5, **SCALED}),
    "one-key-head": ({"num_key_value_heads": 1}, {}),
}


@pytest.mark.parametrize("name", RELEASES)
def test_the_imported_model_computes_what_metas_does(
    make_model, ids: torch.Tensor, tmp_path: Path, name: str
) -> None:
    changes, keys = RELEASES[name]
    _, model = make_model(**EVEN, **changes)
    whole = release(model, tmp_path / "meta", **keys)
    out = convert_folder(tmp_path / "meta", tmp_path / "out")
    found = json.loads((tmp_path / "meta" / "params.json").read_text())
    found["n_kv_heads"] = found["n_kv_heads"] or found["n_heads"]
    ids = ids % 96
    expected = logits(whole, found, ids, POSITIONS)
    theirs, info = transformers.LlamaForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    config = read_config(out)
    ours = Llama(config, init=False)
    load_pretrained_(ours, out)
    for loaded in (theirs.eval(), ours.eval()):
        with torch.no_grad():
            got = loaded.double()(ids, position_ids=POSITIONS.expand_as(ids)).logits
        assert (got - expected).abs().max() < 2e-3 * expected.abs().max()
    pairs = zip(theirs.state_dict().values(), model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b.double()) for a, b in pairs)
    assert config.tie_word_embeddings is (name == "llama-3.2")


def test_without_the_order_of_the_rows_it_is_another_model(
    make_model, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sabotage: the comparison above sees rows that are left as they are, and parts exchanged."""
    _, model = make_model(**EVEN)
    release(model, tmp_path / "meta", parts=2)
    ids = ids % 96
    with torch.no_grad():
        expected = model(ids).logits
        right = convert_folder(tmp_path / "meta", tmp_path / "right")
        with monkeypatch.context() as patch:
            patch.setattr(meta, "half_rotated", lambda weight, heads: weight)
            rows = convert_folder(tmp_path / "meta", tmp_path / "rows")
        (tmp_path / "meta" / "consolidated.00.pth").rename(tmp_path / "first")
        first, second = tmp_path / "first", tmp_path / "meta" / "consolidated.01.pth"
        second.rename(tmp_path / "meta" / "consolidated.00.pth")
        first.rename(second)
        parts = convert_folder(tmp_path / "meta", tmp_path / "parts")
        got = [
            transformers.LlamaForCausalLM.from_pretrained(out).eval()(ids).logits
            for out in (right, rows, parts)
        ]
    assert torch.equal(got[0], expected)
    assert (got[1] - expected).abs().max() > 0.1 * expected.abs().max()
    assert (got[2] - expected).abs().max() > 0.1 * expected.abs().max()


@pytest.mark.parametrize(
    ("keys", "tied", "context", "factor"),
    [
        ({"norm_eps": 1e-6}, False, 2048, None),
        ({}, False, 4096, None),
        ({"rope_theta": 1e6}, False, 16_384, None),
        ({"rope_theta": 5e5}, False, 8192, None),
        ({"rope_theta": 5e5, "use_scaled_rope": True}, False, 131_072, 8.0),
        ({"rope_theta": 5e5, "use_scaled_rope": True}, True, 131_072, 32.0),
    ],
)
def test_what_params_json_leaves_out(
    tmp_path: Path, keys: dict[str, Any], tied: bool, context: int, factor: float | None
) -> None:
    said = {"dim": 64, "n_layers": 1, "n_heads": 4, "norm_eps": 1e-5, **keys}
    config = params.network(
        said, vocab_size=128_256, intermediate_size=96, tied=tied, where=tmp_path
    )
    assert config.max_position_embeddings == context
    assert config.rope_parameters.factor == factor
    assert config.rope_parameters.rope_theta == said.get("rope_theta", 1e4)
    assert (config.bos_token_id, config.eos_token_id) == (128_000, 128_001)


@pytest.fixture
def released(make_model, tmp_path: Path) -> Path:
    _, model = make_model(**EVEN)
    release(model, tmp_path / "model" / "meta", parts=2)
    return tmp_path / "model" / "meta"


def test_the_tokenizer_beside_it_goes_along(released: Path, tmp_path: Path) -> None:
    """sentencepiece's and Llama 3's, either so that transformers gives the same ids."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(sentences(500)))
    train_tokenizer([corpus], tmp_path / "second", vocab_size=330, threads=1)
    for source in (tmp_path / "second", TIKTOKEN):
        shutil.copyfile(source / "tokenizer.model", released.parent / "tokenizer.model")
        out = convert_folder(released, tmp_path / "out")
        expected, found = load_tokenizer(source), load_tokenizer(out)
        theirs = transformers.AutoTokenizer.from_pretrained(out)
        for text in ("hello  world 1234", "日本\n  def"):
            ids = expected.encode(text, bos=True)
            assert found.encode(text, bos=True) == theirs.encode(text) == ids
    (released / "tokenizer.model").write_text("IQ== 0\n")
    with pytest.raises(DataError, match="the list is not whole"):
        convert_folder(released, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def _change(part: str, change: Any) -> Any:
    def act(folder: Path) -> None:
        tensors = torch.load(folder / part, weights_only=True)
        change(tensors)
        torch.save(tensors, folder / part)

    return act


def _params(**keys: Any) -> Any:
    def act(folder: Path) -> None:
        path = folder / "params.json"
        said = {**json.loads(path.read_text()), **keys}
        path.write_text(json.dumps({k: v for k, v in said.items() if v is not None}))

    return act


FIRST, SECOND = "consolidated.00.pth", "consolidated.01.pth"


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (lambda f: (f / FIRST).unlink(), CheckpointError, "consolidated.00.pth is missing"),
        (
            lambda f: (f / SECOND).unlink(),
            CheckpointError,
            "there are 1 parts, and 16 of 32 rows of wq in each make it 2",
        ),
        (
            _change(SECOND, lambda t: t.pop("norm.weight")),
            CheckpointError,
            "consolidated.01.pth is no part of this model: norm.weight is missing in it, "
            "[32] float32 in the first",
        ),
        (
            _change(FIRST, lambda t: t.pop("tok_embeddings.weight")),
            CheckpointError,
            "it has no tensor for model.embed_tokens.weight",
        ),
        (
            lambda f: [
                _change(part, lambda t: t.update({"vision.weight": torch.ones(2)}))(f)
                for part in (FIRST, SECOND)
            ],
            ModelError,
            "vision.weight does not belong to the network",
        ),
        (_params(n_heads=None), ConfigError, "params.json says no n_heads"),
        (_params(rope_theta="5e5"), ConfigError, "says rope_theta is '5e5', which is no number"),
        (_params(n_layers=3), ModelError, "model.layers.2.input_layernorm.weight is missing"),
        (_params(n_kv_heads=4), ModelError, "k_proj.weight has shape [16, 32], the config says"),
        (lambda f: (f / "params.json").unlink(), CallError, "there is no model here: neither"),
    ],
)
def test_what_can_be_wrong_with_a_release(
    released: Path, tmp_path: Path, damage: Any, kind: type[Exception], message: str
) -> None:
    damage(released)
    with pytest.raises(kind) as caught:
        convert_folder(released, tmp_path / "out")
    assert message in caught.value.what
    assert caught.value.remedy
    assert not (tmp_path / "out").exists()
