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
    models = script.build(512, 32000, layers=8)
    ids = torch.randint(0, 32000, (4, 512))
    peer, ours = (script.peak_bytes(models[name], ids) for name in ("huggingface", "ds_llama"))
    whole = max(peer["forward"], peer["backward"])
    assert whole == pytest.approx(1298e6, rel=0.02)
    assert max(ours["forward"], ours["backward"]) <= 0.40 * whole
    held = sum(p.nbytes for p in models["huggingface"].parameters())
    assert whole - 2 * held <= peer["beyond"] <= whole - held
    assert ours["beyond"] <= 0.40 * peer["beyond"]


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
