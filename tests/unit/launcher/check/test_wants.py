"""What a run asks of its hosts, read off its JSON and the planner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ds_llama.config import load_run
from ds_llama.errors import ConfigErrors
from ds_llama.launcher.check.wants import need, wants
from ds_llama.planner.fit import HOST_PROCESS_BYTES


def run_of(folder: Path, **changed: Any) -> Path:
    content = {
        "model": {"preset": "debug"},
        "data": {"train": "shards/train", "sequence_length": 64},
        "train": {"micro_batch_size": 1},
        "output": "runs/x",
        **changed,
    }
    path = folder / "run.json"
    path.write_text(json.dumps(content))
    return path


def test_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 2}}')
    (tmp_path / "tokenizer.json").write_text("{}")
    data = {
        "train": [{"path": "a"}, {"path": "b.bin"}],
        "validation": "c",
        "tokenizer": str(tmp_path / "tokenizer.json"),
    }
    path = run_of(tmp_path, data=data, deepspeed="zero.json")
    found = wants(load_run(path))
    assert found.read == (
        *(str(path), str(tmp_path / "zero.json")),
        *("a.idx", "a.bin", "b.idx", "b.bin", "c.idx", "c.bin"),
        str(tmp_path / "tokenizer.json"),
    )
    assert (found.output, found.nvme, found.ops) == ("runs/x", (), ())


def test_nvme_and_ops(tmp_path: Path) -> None:
    offload = {"device": "nvme", "nvme_path": "/nvme"}
    zero = {"stage": 3, "offload_optimizer": offload, "offload_param": offload}
    found = wants(load_run(run_of(tmp_path, deepspeed={"zero_optimization": zero})))
    assert found.nvme == ("/nvme",)
    assert set(found.ops) == {"cpu_adam", "async_io"}


def test_needs(tmp_path: Path) -> None:
    run = load_run(run_of(tmp_path))
    assert run.architecture is not None
    parameters = run.architecture.num_parameters
    cpu, cuda = need(run, 4, "cpu"), need(run, 4, "cuda")
    assert cpu.device_bytes == 0
    assert cpu.host_bytes > 0
    assert cuda.host_bytes >= HOST_PROCESS_BYTES
    assert cuda.device_bytes > cpu.host_bytes  # a context and NCCL lie beside a tiny model
    assert parameters * 14 <= cpu.checkpoint_bytes <= parameters * 16
    assert cpu.keep == 3
    sgd = load_run(run_of(tmp_path, optimizer={"type": "SGD"}))
    assert need(sgd, 4, "cpu").checkpoint_bytes == cpu.checkpoint_bytes - 8 * parameters


def test_a_run_that_does_not_fit_its_ranks(tmp_path: Path) -> None:
    run = load_run(run_of(tmp_path, train={"micro_batch_size": 2, "global_batch_size": 8}))
    with pytest.raises(ConfigErrors, match="do not fit together on 3 data-parallel ranks"):
        need(run, 3, "cpu")
