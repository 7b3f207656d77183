"""The README's three lines for the Hugging Face Trainer, on our model's exported weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import ds_llama as dl
from ds_llama.weights.export import export_model
from tests.distributed.runs import MODEL, global_batch
from tests.distributed.world import start

ROOT = Path(__file__).parents[2]
STRATEGIES = ("zero2", "zero3")


@pytest.fixture(scope="module")
def model() -> dl.Llama:
    return dl.Llama(dl.LlamaConfig(**MODEL), seed=0)


@pytest.fixture(scope="module")
def found(model: dl.Llama, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("trainer")
    export_model(model, model.config, folder / "weights")
    [lines] = re.findall(r"```python\n(config = .*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(lines.splitlines()) == 3
    (folder / "lines.py").write_text(lines)
    (folder / "ds_configs").symlink_to(ROOT / "ds_configs")
    words = (str(folder / "lines.py"), str(folder / "weights"), str(folder / "found.json"))
    code = start(2, folder, "--module", "tests.docs.trainer_rank", *words, *STRATEGIES)
    assert code == 0, (folder / "log.txt").read_text()[-4000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it_trains_our_weights(strategy: str, found: dict[str, Any], model: dl.Llama) -> None:
    row = found[strategy]
    assert (row["stage"], row["dtype"]) == (int(strategy[-1]), "torch.bfloat16")
    with torch.no_grad():
        ours = dl.Llama(model.config, init=False).bfloat16()
        ours.load_state_dict(model.state_dict())
        loss = ours(**global_batch(0, 1)).loss.item()
    # bf16 has 8 bits: one part in 256 in every logit, averaged over the tokens.
    assert row["losses"][0] == pytest.approx(loss, rel=4e-3)
    assert row["losses"][1] < row["losses"][0] - 0.05


def test_stages_agree(found: dict[str, Any]) -> None:
    assert found["zero2"]["losses"] == pytest.approx(found["zero3"]["losses"], rel=4e-3)
