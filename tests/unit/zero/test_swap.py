"""Where NVMe offload cannot work, and how that is said; the swapping itself is a cell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from deepspeed.ops.op_builder import AsyncIOBuilder
from torch import nn

from ds_llama.config import load_run
from ds_llama.config.resolve import Resolved, resolve
from ds_llama.errors import ConfigError, MachineError
from ds_llama.zero import swap

KEY = "zero_optimization.offload_optimizer.nvme_path"


def to(folder: Path) -> Resolved:
    tree = {"model": {"preset": "tiny"}, "data": {"train": "x"}, "deepspeed": "zero3_nvme"}
    paths = [f"{KEY}={folder}", f"{KEY.replace('optimizer.', 'param.')}={folder}"]
    return resolve(load_run(tree, *[f"deepspeed.{path}" for path in paths]), 1, device="cpu")


def test_without_nvme_nothing_is_asked() -> None:
    swap.prepare(resolve(load_run({"model": {"preset": "tiny"}, "data": {"train": "x"}}), 1))


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"nvme_path {tmp_path}/x is not a folder") as caught:
        swap.prepare(to(tmp_path / "x"))
    assert caught.value.where.endswith(f"zero3_nvme.json:{KEY}")
    assert f"on the command line deepspeed.{KEY}=FOLDER" in caught.value.remedy


def test_a_file_system_without_direct_io(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(22, os.strerror(22))

    monkeypatch.setattr(swap.os, "open", refuse)
    with pytest.raises(ConfigError, match="which needs direct I/O: Invalid argument") as caught:
        swap.prepare(to(tmp_path))
    assert "on a local disk" in caught.value.remedy


HOLD = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); print('held', flush=True)"


def test_a_folder_that_another_run_swaps_to(tmp_path: Path) -> None:
    lock = str(tmp_path / ".ds_llama-rank0.lock")
    code = f"{HOLD}; sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="another run swaps to") as caught:
            swap.prepare(to(tmp_path))
        assert caught.value.remedy == "give every run a folder of its own"
        other.communicate()
    swap.prepare(to(tmp_path))
    swap.prepare(to(tmp_path))  # the same process may make another engine


def test_no_libaio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AsyncIOBuilder, "has_function", lambda *_: False)
    swap._require_op.cache_clear()
    with pytest.raises(MachineError, match="needs libaio and its headers") as caught:
        swap.prepare(to(tmp_path))
    swap._require_op.cache_clear()
    assert "apt install libaio-dev" in caught.value.remedy


def test_a_swapper_is_asked_for_each_parameter_once() -> None:
    asked: list[list[nn.Parameter]] = []

    class Swapper:
        def swap_in(self, params: list[nn.Parameter], async_op: bool = True) -> None:
            asked.append(params)

    model = nn.Linear(2, 2)
    swapper = model.weight.nvme_swapper = Swapper()
    swap.mend(model)
    swap.mend(model)
    swapper.swap_in([model.weight, model.bias, model.weight], async_op=False)
    assert [[id(p) for p in params] for params in asked] == [[id(model.weight), id(model.bias)]]
    assert torch.is_tensor(asked[0][0])
