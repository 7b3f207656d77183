"""Training over hosts is training: the same losses as on one host with as many ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaigns.multinode_losses import train
from tests.multinode.cluster import Cluster

pytestmark = pytest.mark.timeout(1300)


def test_two_hosts_with_uneven_slots_give_the_losses_of_one(
    cluster: Cluster, tmp_path: Path
) -> None:
    """All stages and layouts: `python -m tests.campaigns.multinode_losses`."""
    one = train(cluster, tmp_path, 3, [(0, 3)])
    assert train(cluster, tmp_path, 3, [(2, 1), (1, 2)]) == one
    assert len({tuple(row[1:]) for row in one}) == len(one)  # no two steps are alike
