"""What a rank's slice of a parameter is. Construction itself is tested on gloo worlds."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ds_llama.errors import ModelError
from ds_llama.zero.construct import partition_of


def test_a_parameter_on_nvme_is_refused() -> None:
    parameter = SimpleNamespace(ds_tensor=SimpleNamespace(final_location="nvme"))
    with pytest.raises(ModelError, match="parameters on NVMe cannot be filled in place") as caught:
        partition_of(parameter)
    assert caught.value.where == "deepspeed.zero_optimization.offload_param.device"
    assert "only the optimizer to nvme" in caught.value.remedy
