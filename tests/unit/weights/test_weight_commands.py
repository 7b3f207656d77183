from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from ds_llama.cli.main import main
from ds_llama.config.model import LlamaConfig
from ds_llama.errors import ModelError
from ds_llama.weights import tensorfile
from ds_llama.weights.convert import convert_folder
from ds_llama.weights.folder import ModelFolder
from ds_llama.weights.skeleton import specs_of


@pytest.fixture
def saved(make_model, tmp_path: Path) -> Path:
    _, model = make_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "saved", max_shard_size=20_000)
    (tmp_path / "saved" / "tokenizer.json").write_text("{}")
    return tmp_path / "saved"


@pytest.mark.parametrize("command", ["import", "export"])
def test_a_folder_is_written_anew(
    command: str, saved: Path, tmp_path: Path, ids: torch.Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [command, str(saved), str(out), "--max-shard-size", "30KB", "--json"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["source"], report["out"]) == (str(saved), str(out))
    assert report["files"].keys() >= {"tokenizer.json", "config.json"}
    assert sum(name.endswith(".safetensors") for name in report["files"]) > 1
    pair = [transformers.LlamaForCausalLM.from_pretrained(folder).eval() for folder in (saved, out)]
    with torch.no_grad():
        assert torch.equal(pair[0](ids).logits, pair[1](ids).logits)


def test_cast_and_say_so(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(saved), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    assert "out: 4 files, " in capsys.readouterr().out
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("command", ["import", "export"])
def test_mistakes_of_the_call(
    command: str, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    assert "remedy: " in capsys.readouterr().err
    assert main([command, str(saved), str(tmp_path / "out"), "--max-shard-size", "4 apples"]) == 2
    assert "where: --max-shard-size" in capsys.readouterr().err
    assert main([command, str(saved), str(saved)]) == 1
    assert "error: the weights cannot be written over themselves" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def _damage(saved: Path, how: str) -> str:
    shard = sorted(saved.glob("model-*.safetensors"))[0]
    if how == "cut off":
        shard.write_bytes(shard.read_bytes()[:-4])
    elif how == "lacking":
        shard.unlink()
    elif how == "no config":
        (saved / "config.json").unlink()
    elif how == "no weights":
        for path in saved.glob("model*"):
            path.unlink()
    elif how == "gpt2":
        _edit(saved, model_type="gpt2")
    elif how == "taken":
        (saved.parent / "out").mkdir()
        (saved.parent / "out" / "thesis.txt").write_text("")
    else:
        with ModelFolder(saved) as source:
            tensors = {n: source.read(n).view(source.spec(n).shape) for n in source.names}
        if how == "int8":
            tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
        elif how == "beyond float16":
            tensors["model.norm.weight"][-1] = 65520
        else:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
        for path in saved.glob("model*"):
            path.unlink()
        tensorfile.write(saved / "model.safetensors", tensors.items())
    return shard.name


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ("cut off", 1, "{shard} is cut off: "),
        ("lacking", 1, "model.safetensors.index.json names {shard}, which is missing"),
        ("no config", 2, "there is no model here: neither config.json nor params.json"),
        ("no weights", 1, "the folder has neither model.safetensors nor"),
        ("gpt2", 1, "model_type is 'gpt2'"),
        ("taken", 1, "there is something else where the export should go: thesis.txt"),
        ("another head", 1, "the config ties the head to the embedding, and the folder holds"),
        ("beyond float16", 1, "model.norm.weight has elements beyond 65504, the largest number"),
        ("int8", 1, "model.norm.weight is stored as int8: the weights are quantized"),
    ],
)
def test_each_mistake_is_one_error(
    saved: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    how: str,
    code: int,
    message: str,
) -> None:
    shard = _damage(saved, how)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["import", str(saved), str(tmp_path / "out"), "--dtype", "float16"]) == code
    said = capsys.readouterr().err
    assert message.format(shard=shard) in said
    assert (said.count("error: "), said.count("remedy: ")) == (1, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_words_of_the_call(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["import", str(saved), str(tmp_path / "out")]
    for more, message in (
        (["--dtype", "int8"], "int8"),
        (["--tokenizer", str(tmp_path / "none")], "none"),
        (["--tokenizer", str(tmp_path)], f"there is no tokenizer at {tmp_path}"),
        (["--max-shard-size", "0.4"], "a file of 0.4 holds no tensor"),
    ):
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err
    (saved / "tokenizer.json").unlink()
    assert main(words) == 0
    assert "no tokenizer came along; --tokenizer PATH takes one" in capsys.readouterr().err


def test_an_export_holds_no_average(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for words in (["export", str(saved), str(out)], ["generate", str(saved), "--prompt", "a"]):
        assert main([*words, "--ema"]) == 2
        found = capsys.readouterr().err
        assert "--ema needs a training checkpoint, and this is an exported folder" in found
        assert "remedy: give a run, checkpoints or step folder" in found
    assert not out.exists()


def _edit(folder: Path, **keys: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is missing"),
        (
            {"num_hidden_layers": 1},
            "model.layers.1.input_layernorm.weight does not belong to the network",
        ),
        ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
        ({"vocab_size": 98}, "model.embed_tokens.weight has shape [97, 32], the config says"),
    ],
)
def test_weights_that_are_not_the_configs(
    saved: Path, tmp_path: Path, keys: dict[str, object], message: str
) -> None:
    _edit(saved, **keys)
    with pytest.raises(ModelError) as caught:
        convert_folder(saved, tmp_path / "out")
    assert message in caught.value.what
    assert "config.json" in caught.value.remedy
    assert not (tmp_path / "out").exists()


def test_the_skeleton_has_transformers_names_and_shapes_without_memory(make_model) -> None:
    config, model = make_model(attention_bias=True, mlp_bias=True)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {name: spec.shape for name, spec in specs_of(config, torch.bfloat16).items()} == shapes
    from ds_llama.config import preset

    large: LlamaConfig = preset("llama-3.1-405b")
    assert sum(spec.numel for spec in specs_of(large, torch.bfloat16).values()) == (
        large.num_parameters
    )
