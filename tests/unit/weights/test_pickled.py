from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_llama.cli.main import main
from ds_llama.errors import CheckpointError
from ds_llama.weights.pickled import Reader


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = torch.arange(48, dtype=torch.float32)
    tensors = {
        "plain": base.view(6, 8),
        "shared": base[8:40],
        "turned": base.view(6, 8).t(),
        "strided": base[::5],
        "half": base.bfloat16().view(2, 24),
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "scalar": torch.tensor(3.0),
        "empty": torch.ones(0, 4),
    }
    path = tmp_path_factory.mktemp("pickled") / "model.bin"
    torch.save(tensors, path)
    return path


def test_every_tensor_is_the_one_that_torch_loads(file: Path) -> None:
    expected = torch.load(file, weights_only=True)
    with Reader(file) as reader:
        assert reader.specs.keys() == expected.keys()
        for name, tensor in expected.items():
            assert reader.specs[name].shape == tuple(tensor.shape)
            assert torch.equal(reader.read(name), tensor.detach().reshape(-1)), name


@settings(deadline=None)
@given(st.sampled_from(["plain", "shared", "turned", "half"]), st.data())
def test_any_range_of_elements(file: Path, name: str, data: st.DataObject) -> None:
    whole = torch.load(file, weights_only=True)[name].reshape(-1)
    ends = st.integers(0, whole.numel())
    start, stop = sorted((data.draw(ends), data.draw(ends)))
    with Reader(file) as reader:
        assert torch.equal(reader.read(name, start, stop), whole[start:stop])


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def test_a_pickle_that_is_a_program_is_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "pytorch_model.bin", tmp_path / "mark"
    torch.save({"x": torch.ones(2), "y": Evil(mark)}, path)
    with pytest.raises(CheckpointError, match=r"asks for (posix|nt)\.system") as caught:
        Reader(path)
    assert "it was not run" in caught.value.what
    assert "safetensors" in caught.value.remedy
    path.write_bytes(pickle.dumps({"y": Evil(mark)}))  # as torch wrote before 1.6: bare
    with pytest.raises(CheckpointError, match="is cut off, or no file that torch"):
        Reader(path)
    assert not mark.exists()
    torch.save({"y": Evil(mark)}, path)
    torch.load(path, weights_only=False)  # sabotage: the file does what it is feared for
    assert mark.exists()


def _compressed(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)


def _empty(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), "cannot be opened: No such file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-100]), "is cut off, or no file"),
        (_compressed, "is compressed, which torch.save does not do"),
        (lambda p: torch.save([torch.ones(1)], p), "holds something else than tensors"),
        (lambda p: torch.save({"model": {"x": torch.ones(1)}}, p), "holds something else"),
        (lambda p: torch.save({"x": torch.ones(2).to_sparse()}, p), "holds something else"),
        (_empty, "is damaged (RuntimeError: "),
    ],
)
def test_damaged_and_foreign_files_are_named(
    file: Path, tmp_path: Path, damage: Any, message: str
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(file.read_bytes())
    damage(path)
    with pytest.raises(CheckpointError) as caught:
        Reader(path)
    assert caught.value.what.startswith(f"model.bin {message}")
    assert (caught.value.where, bool(caught.value.remedy)) == (str(path), True)


def _save(model: transformers.LlamaForCausalLM, folder: Path, count: int) -> Path:
    """As transformers saved before safetensors: one file, or several with an index."""
    folder.mkdir()
    model.config.save_pretrained(folder)
    tensors = list(model.state_dict().items())
    tensors.append(("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4)))
    if count == 1:
        torch.save(dict(tensors), folder / "pytorch_model.bin")
        return folder
    files = [f"pytorch_model-{n + 1:05d}-of-{count:05d}.bin" for n in range(count)]
    for number, file in enumerate(files):
        torch.save(dict(tensors[number::count]), folder / file)
    index = {name: files[number % count] for number, (name, _) in enumerate(tensors)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("tied", [False, True])
def test_bin_folders_are_imported(
    make_model, ids: torch.Tensor, tmp_path: Path, count: int, tied: bool
) -> None:
    _, model = make_model(tie_word_embeddings=tied)
    source, out = _save(model, tmp_path / "source", count), tmp_path / "out"
    (source / "generation_config.json").write_text('{"temperature": 0.6, "do_sample": true}')
    assert main(["import", str(source), str(out)]) == 0
    loaded, info = transformers.LlamaForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    assert loaded.generation_config.temperature == 0.6
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)


def test_a_run_is_told_to_import_first(make_model, tmp_path: Path) -> None:
    from ds_llama.weights.load import load_pretrained_

    _, model = make_model()
    source = _save(model, tmp_path / "source", 1)
    with pytest.raises(CheckpointError, match=r"model\.bin is a pickle, which is not") as e:
        load_pretrained_(model, source)
    assert e.value.remedy == f"convert it first: ds-llama import {source} OUT"
