"""The short form of the campaign: 58 MB of weights, one process."""

from __future__ import annotations

from pathlib import Path

from tests.campaigns import weights_memory as campaign


def test_import_and_export_hold_a_shard_and_the_largest_tensor_at_most(tmp_path: Path) -> None:
    rows = campaign.campaign(tmp_path, "short", processes=False)
    assert [row["row"] for row in rows] == list(campaign.ROWS)
    wrong = [row for row in rows if campaign.failed(row, "short")]
    assert not wrong, campaign.table(rows, "short")


def test_the_whole_form_has_500_mb_and_more() -> None:
    assert 4 * campaign._config("full").num_parameters > 500e6
