from __future__ import annotations

import errno
from pathlib import Path

import pytest

from ds_llama.checkpoint import ranks
from ds_llama.checkpoint.shards import _HashingFile
from ds_llama.errors import CheckpointError, ModelError


def test_one_rank_alone_gets_its_own_result() -> None:
    assert ranks.gather(3) == [3]
    assert ranks.together("adding", "here", lambda: 1 + 1) == 2
    assert ranks.together("adding", "here", lambda: 1 + 1, only=0) == 2


def test_errors_become_checkpoint_errors_that_say_what_failed_where() -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/shard.pt")

    with pytest.raises(CheckpointError) as caught:
        ranks.together("saving step-1", "run", full)
    assert caught.value.what == (
        "saving step-1 failed on rank 0: No space left on device; "
        "nothing that was committed before is harmed"
    )
    assert caught.value.where == "/data/shard.pt"

    def broken() -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(CheckpointError) as caught:
        ranks.together("loading step-1", "run", broken)
    assert caught.value.what == "loading step-1 failed on rank 0: RuntimeError: shapes differ"
    assert caught.value.where == "run"
    assert "export the checkpoint" in caught.value.remedy


def test_this_packages_own_errors_stay_what_they_are() -> None:
    def foreign() -> None:
        raise ModelError("a", where="b", remedy="c")

    with pytest.raises(ModelError):
        ranks.together("loading", "run", foreign)


def test_a_hashing_file_keeps_the_error_that_torch_hides() -> None:
    import torch

    with Path("/dev/full").open("wb", buffering=0) as full:
        file = _HashingFile(full)
        with pytest.raises((OSError, RuntimeError), match=r"No space|unexpected pos"):
            torch.save({"x": torch.ones(9)}, file)
    assert file.error is not None
    assert file.error.errno == errno.ENOSPC
