"""benchmarks/peers/model_step.py runs, and its memory bar holds at the reference shape."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path("benchmarks", "peers", "model_step.py")


@pytest.fixture(scope="module")
def script(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("model_step", repository / SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_peak_bytes_at_the_reference_shape(script: ModuleType) -> None:
    """Parameters and gradients included, and counted without them too."""
    found = script.memory(script.Shape(512, 32000, 512, tokens=2048), layers=8)["peak_bytes"]
    peer, ours = found["huggingface"], found["ds_llama"]
    whole = max(peer["forward"], peer["backward"])
    assert whole == pytest.approx(1298e6, rel=0.02)
    assert max(ours["forward"], ours["backward"]) <= 0.40 * whole
    held = 2 * 58_466_816  # bytes of the parameters in bf16
    assert whole - 2 * held <= peer["beyond"] <= whole - held
    assert ours["beyond"] <= 0.40 * peer["beyond"]


def test_fake_tensors_have_the_bytes_of_real_ones(script: ModuleType) -> None:
    shape = script.Shape(128, 320, 64, tokens=128)
    models = script.build(shape.hidden, shape.vocabulary, layers=2)
    real = {name: script.peak_bytes(model, shape.ids()) for name, model in models.items()}
    fake = script.memory(shape, layers=2)["peak_bytes"]
    assert fake["ds_llama"] == real["ds_llama"]
    assert fake["huggingface"] == pytest.approx(real["huggingface"], rel=0.02)


def test_the_script(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["--repeats", "2", "--layers", "1", "--tokens", "16", "--length", "16"]
    call += ["--hidden", "128", "--vocabulary", "320"]
    threads = torch.get_num_threads()
    try:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *call, "--json"])
        script.main()
        result = json.loads(capsys.readouterr().out)
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *call])
        script.main()
    finally:
        torch.set_num_threads(threads)
    (row,) = result["rows"]
    assert row["loss"]["ds_llama"] == pytest.approx(row["loss"]["huggingface"], rel=1e-3)
    assert set(row["time_ratio"]) == {"forward", "backward", "step"}
    header, line = capsys.readouterr().out.splitlines()
    assert "MiB beyond" in header
    assert line.split()[:3] == ["128", "320", "16"]
