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
    """Parameters and gradients included, and counted without the parameters too."""
    models = script.build(layers=8)
    ids = torch.randint(0, 32000, (4, 512))
    parameters = sum(p.nbytes for p in models["ds_llama"].parameters())
    peer, ours = (
        max(script.peak_bytes(models[name], ids).values()) for name in ("huggingface", "ds_llama")
    )
    assert peer == pytest.approx(1298e6, rel=0.02)
    assert ours <= 0.40 * peer
    assert ours - parameters <= 0.40 * (peer - parameters)


def test_the_script(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = [*("--threads", "1", "--repeats", "2", "--layers", "1", "--tokens", "1", "16")]
    threads = torch.get_num_threads()
    try:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *call, "--json"])
        script.main()
        result = json.loads(capsys.readouterr().out)
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *call])
        script.main()
    finally:
        torch.set_num_threads(threads)
    assert result["loss"]["ds_llama"] == pytest.approx(result["loss"]["huggingface"], rel=1e-3)
    assert set(result["time_ratio"]) == {"forward", "backward", "step"}
    assert "memory ratio" in capsys.readouterr().out
