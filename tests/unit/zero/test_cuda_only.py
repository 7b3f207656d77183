"""What rules/strategies.py says of a CPU is so: each feature is asked for in DeepSpeed itself."""

from __future__ import annotations

import inspect

import pytest
from deepspeed.accelerator import get_accelerator
from deepspeed.compile.util import is_deepcompile_supported
from deepspeed.runtime.superoffload import superoffload_stage3
from deepspeed.runtime.zenflow import engine_stage3


@pytest.mark.parametrize("builder", ["QuantizerBuilder", "DeepCompileBuilder", "GDSBuilder"])
def test_there_is_no_op_for_a_cpu(builder: str) -> None:
    found = get_accelerator().create_op_builder(builder)
    with pytest.raises(ValueError, match="had not been implemented on CPU backend"):
        found.load()


def test_super_offload_asserts_cuda() -> None:
    with pytest.raises(AssertionError, match="SuperOffload only supports NVIDIA CUDA GPUs"):
        superoffload_stage3._validate_superoffload_accelerator()


def test_deepcompile_is_off() -> None:
    assert not is_deepcompile_supported()


def test_zenflow_at_stage_3_allocates_on_cuda() -> None:
    assert "device='cuda'" in inspect.getsource(engine_stage3.update_selected_channels)
