"""The short form of the campaign: 58 MB of weights, one process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from ds_llama.checkpoint import offline
from ds_llama.errors import CheckpointError
from tests.campaigns import weights_memory as campaign


def test_import_and_export_hold_a_shard_and_the_largest_tensor_at_most(tmp_path: Path) -> None:
    rows = campaign.campaign(tmp_path, "short", processes=False)
    assert [row["row"] for row in rows] == list(campaign.ROWS)
    wrong = [row for row in rows if campaign.failed(row, "short")]
    assert not wrong, campaign.table(rows, "short")


def test_the_whole_form_has_500_mb_and_more() -> None:
    assert 4 * campaign._config("full").num_parameters > 500e6


def test_a_checkpoint_that_is_removed_while_it_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As retention does while the run goes on: said so, and nothing half remains."""
    source, write = tmp_path / "step-00000001", offline.write_folder
    campaign.checkpoint(campaign._config("tiny"), source)

    def removed_first(*given: Any, **words: Any) -> Path:
        shutil.rmtree(source)
        return write(*given, **words)

    monkeypatch.setattr(offline, "write_folder", removed_first)
    with pytest.raises(CheckpointError, match="the checkpoint is not there any more") as caught:
        offline.export_step(source, tmp_path / "out")
    assert caught.value.where == str(source)
    assert caught.value.remedy.startswith("export again, from a newer one")
    assert not list(tmp_path.iterdir())


def test_paths_of_a_run_are_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work" / "runs" / "a" / "checkpoints" / "step-00000001"
    (tmp_path / "work" / "tokenizer").mkdir(parents=True)
    folder.mkdir(parents=True)
    expected = tmp_path / "work" / "tokenizer"
    for here, output, found in (
        (tmp_path / "work", "elsewhere", Path("tokenizer")),
        (tmp_path, "runs/a", expected),
        (tmp_path, "./runs/a/", expected),
        (tmp_path, "runs/b", None),
        (tmp_path, str(folder.parents[1]), None),
        (tmp_path, "", None),
    ):
        monkeypatch.chdir(here)
        assert offline._located("tokenizer", {"output": output}, folder) == found
        assert offline._located(str(expected), {"output": output}, folder) == expected
        assert offline._located(None, {"output": output}, folder) is None
