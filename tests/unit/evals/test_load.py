from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from ds_llama.commit import manifest, protocol
from ds_llama.errors import CallError, CheckpointError, ModelError
from ds_llama.evals.load import Step, find_run, load_for_inference, locate
from ds_llama.weights.export import export_model
from tests.unit.evals.models import small

IDS = torch.arange(30).reshape(2, 15)


def _commit_step(run: Path, step: int) -> Path:
    """A step folder through the real commit protocol; what is in it is not looked at here."""
    root, name = run / "checkpoints", f"step-{step:08d}"
    staged = protocol.begin(root, name)
    (staged / "state.json").write_text("{}")
    entries = manifest.entries(staged, [staged / "state.json"])
    return protocol.seal(root, name, entries, {"step": step, "world_size": 1, "stage": 0})


def _set_time(path: Path, nanoseconds: int) -> None:
    os.utime(path, ns=(nanoseconds, nanoseconds))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_an_export_is_the_same_model(tmp_path: Path, dtype: torch.dtype, tied: bool) -> None:
    model = small(tie_word_embeddings=tied).to(dtype)
    export_model(model, model.config, tmp_path / "out")
    state = torch.random.get_rng_state()
    loaded = load_for_inference(tmp_path / "out")
    assert torch.equal(torch.random.get_rng_state(), state)  # nothing was drawn
    assert loaded.config == model.config
    assert loaded.tokenizer is None
    assert not loaded.model.training
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {dtype}
    with torch.no_grad():
        assert torch.equal(loaded.model(IDS).logits, model(IDS).logits)
    assert (loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight) == tied


def test_a_tokenizer_in_the_export_is_found(tmp_path: Path) -> None:
    model = small()
    export_model(model, model.config, tmp_path / "out")
    (tmp_path / "out" / "tokenizer_config.json").write_text("{}")
    assert load_for_inference(tmp_path / "out").tokenizer is None
    (tmp_path / "out" / "tokenizer.model").write_bytes(b"")
    assert load_for_inference(tmp_path / "out").tokenizer == tmp_path / "out"


@pytest.mark.parametrize("tied", [False, True])
def test_a_step_is_read_by_whom_the_caller_gives(tmp_path: Path, tied: bool) -> None:
    model = small(tie_word_embeddings=tied)
    folder = _commit_step(tmp_path, 3)

    def read(path: Path) -> Step:
        assert path == folder
        return Step(model.config, model.state_dict(), torch.float64, Path("tok"))

    loaded = load_for_inference(tmp_path, read_step=read)
    assert loaded.tokenizer == Path("tok")
    with torch.no_grad():
        assert torch.equal(loaded.model(IDS).logits, model(IDS).logits)

    def lacking(path: Path) -> Step:
        tensors = {name: t for name, t in model.state_dict().items() if "up_proj" not in name}
        return Step(model.config, tensors, torch.float64, None)

    with pytest.raises(ModelError, match=r"mlp\.up_proj\.weight is missing"):
        load_for_inference(tmp_path, read_step=lacking)
    with pytest.raises(CheckpointError, match="this is a training checkpoint") as caught:
        load_for_inference(tmp_path)
    assert caught.value.remedy == f"export it first: ds-llama export {folder} OUT"


def test_a_run_means_its_export_when_that_is_as_new(tmp_path: Path) -> None:
    model = small()
    step = _commit_step(tmp_path, 3)
    assert locate(tmp_path) == ("step", step)
    export = export_model(model, model.config, tmp_path / "export")
    now = (step / manifest.NAME).stat().st_mtime_ns
    for later, expected in ((1, "export"), (0, "export"), (-1, "step")):
        _set_time(export / "config.json", now + later * 10**9)
        assert locate(tmp_path)[0] == expected
    _set_time(export / "config.json", now + 10**9)
    # the others say which they mean
    assert locate(tmp_path / "checkpoints") == ("step", step)
    assert locate(step) == ("step", step)
    assert locate(export) == ("export", export)


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CallError, match="there is no such folder"):
        locate(tmp_path / "none")
    with pytest.raises(CheckpointError, match="there is no checkpoint here"):
        locate(tmp_path)


def test_the_run_of_a_checkpoint_is_found_from_all_its_folders(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    step = run / "checkpoints" / "step-00000003"
    (run / "export").mkdir(parents=True)
    step.mkdir(parents=True)
    assert find_run(step) is None
    (run / "run.json").write_text(json.dumps({"model": {}, "data": {"validation": "v"}}))
    for folder in (run, run / "checkpoints", step, run / "export"):
        assert find_run(folder) == {"model": {}, "data": {"validation": "v"}}
    assert find_run(step / "deeper") is None
    (run / "run.json").write_text("{")
    assert find_run(run) is None
