from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest
import torch
import transformers

from ds_llama.errors import CheckpointError, ModelError
from ds_llama.weights import write
from ds_llama.weights.export import export_model
from ds_llama.weights.tensorfile import Reader, Spec


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("max_shard_bytes", [4 << 30, 20_000])
def test_transformers_loads_the_export_with_equal_logits(
    make_model, ids: torch.Tensor, tmp_path: Path, tied: bool, max_shard_bytes: int
) -> None:
    config, model = make_model(tie_word_embeddings=tied)
    out = export_model(model, config, tmp_path / "out", max_shard_bytes=max_shard_bytes)
    loaded, info = transformers.LlamaForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    names = _stored(out)
    assert ("lm_head.weight" in names) is not tied
    assert len(names) == len(set(names)) == len(list(model.parameters()))


def _stored(out: Path) -> list[str]:
    names: list[str] = []
    for path in sorted(out.glob("*.safetensors")):
        with Reader(path) as reader:
            names += reader.specs
    return names


def test_other_weights_give_other_logits(make_model, ids: torch.Tensor, tmp_path: Path) -> None:
    """Sabotage: one element changed after the export shows in the comparison above."""
    config, model = make_model()
    out = export_model(model, config, tmp_path / "out")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] += 0.1
        loaded = transformers.LlamaForCausalLM.from_pretrained(out)
        assert not torch.equal(loaded(ids).logits, model(ids).logits)


def test_dtype_is_the_weights_own_unless_asked_for(make_model, tmp_path: Path) -> None:
    config, model = make_model()
    bf16 = model.to(torch.bfloat16)
    for dtype, stored in ((None, "bfloat16"), (torch.float32, "float32")):
        out = export_model(bf16, config, tmp_path / stored, dtype=dtype)
        loaded = transformers.LlamaForCausalLM.from_pretrained(out, dtype="auto")
        assert loaded.dtype == getattr(torch, stored)
        assert json.loads((out / "config.json").read_text())["torch_dtype"] == stored
        pairs = zip(loaded.parameters(), bf16.parameters(), strict=True)
        assert all(torch.equal(a, b.to(a.dtype)) for a, b in pairs)


def test_configs_and_tokenizer_files(make_model, tmp_path: Path) -> None:
    config, model = make_model(eos_token_id=[2, 3], rope_parameters={"rope_theta": 5e5})
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.model").write_bytes(b"\x01\x02")
    (tokenizer / "special_tokens_map.json").write_text("{}")
    (tokenizer / "notes.txt").write_text("not a tokenizer file")
    out = export_model(model, config, tmp_path / "out", tokenizer=tokenizer)
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.model",
    ]
    assert type(config).from_hf(out) == config
    generation = transformers.GenerationConfig.from_pretrained(out)
    assert (generation.bos_token_id, generation.eos_token_id) == (1, [2, 3])
    assert (out / "tokenizer.model").read_bytes() == b"\x01\x02"

    class Saving:
        def save(self, folder: Path) -> None:
            (folder / "tokenizer.json").write_text("{}")

    export_model(model, config, out, tokenizer=Saving())
    assert (out / "tokenizer.json").exists()
    assert not (out / "tokenizer.model").exists()


def test_a_parameter_without_elements_never_leaves(make_model, tmp_path: Path) -> None:
    config, model = make_model()
    model.lm_head.weight.data = torch.empty(0)
    with pytest.raises(
        ModelError, match=r"lm_head.weight has no elements \(shape \[0\]\)"
    ) as caught:
        export_model(model, config, tmp_path / "out")
    assert "partitioning" in caught.value.remedy
    assert not list(tmp_path.iterdir())


def test_without_the_check_it_would_leave(
    make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sabotage: nothing else on the way to the file stops a tensor without elements."""
    config, model = make_model()
    model.lm_head.weight.data = torch.empty(0)
    monkeypatch.setattr(write, "_require_elements", lambda specs: None)
    out = export_model(model, config, tmp_path / "out")
    with Reader(out / "model.safetensors") as reader:
        assert reader.specs["lm_head.weight"].numel == 0


def test_files_are_filled_in_order_and_never_beyond_the_limit() -> None:
    sizes = {"a": 3, "b": 3, "c": 9, "d": 1}
    specs = {name: Spec(torch.uint8, (size,)) for name, size in sizes.items()}
    files = write.plan(specs, 6)
    assert [files[name][6:11] for name in sizes] == ["00001", "00001", "00002", "00003"]
    assert files["d"] == "model-00003-of-00003.safetensors"
    assert set(write.plan(specs, 16).values()) == {"model.safetensors"}


def test_a_full_disk_leaves_the_former_export(make_model, tmp_path: Path) -> None:
    config, model = make_model()
    out = export_model(model, config, tmp_path / "out")
    before = (out / "model.safetensors").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="the export failed: File too large") as caught:
            export_model(model, config, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "a former export is as it was" in caught.value.what
    assert "free space" in caught.value.remedy
    assert (out / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_something_else_is_never_written_over(make_model, tmp_path: Path) -> None:
    config, model = make_model()
    (tmp_path / "out").mkdir()
    export_model(model, config, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    (tmp_path / "file").write_text("")
    export_model(model, config, tmp_path / "with")
    (tmp_path / "with" / "notes.json").write_text("")
    for name in ("mine", "file", "with"):
        with pytest.raises(CheckpointError, match="something else where the export") as caught:
            export_model(model, config, tmp_path / name)
        assert "new folder" in caught.value.remedy
    assert (tmp_path / "with" / "notes.json").exists()
    assert "export should go: notes.json" in caught.value.what


def test_links_killed_exports_and_the_folder_that_one_is_in(
    make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, model = make_model()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    for _ in range(2):
        export_model(model, config, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["out"]
    # Killed when the former was out of the way and the new one not there: it comes back first.
    out = (tmp_path / "disk" / "out").rename(tmp_path / "disk" / ".out.former").with_name("out")
    model.lm_head.weight.data = torch.empty(0)
    (out.parent / ".out.staging").mkdir()
    monkeypatch.setattr(write, "_require_elements", lambda specs: None)
    monkeypatch.setattr(write, "_write_configs", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        write.write_folder(out, config, {}, lambda name: [])
    assert (out / "model.safetensors").exists()
    monkeypatch.chdir(out)
    with pytest.raises(CheckpointError, match="this is the one that you are in") as caught:
        export_model(model, config, ".")
    assert caught.value.remedy == "name a folder in it"


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_export_has_its_name_once_it_is_on_the_disk(
    make_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, model = make_model()
    export_model(model, config, tmp_path / "out")
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(handle: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def renamed(source: Path, target: Path) -> None:
        done.append(f"{source.name} -> {target.name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    export_model(model, config, tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    publish = done.index(".out.staging -> out")
    assert files | {".out.staging"} <= set(done[:publish])
    assert done[publish + 1 :] == [tmp_path.name]
