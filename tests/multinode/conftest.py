"""Clusters of hosts in namespaces, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.multinode import cluster as clusters


@pytest.fixture(scope="session")
def can_have_hosts() -> None:
    """Skips with what is missing for hosts in namespaces."""
    if (why := clusters.missing()) is not None:
        pytest.skip(why)


@pytest.fixture(scope="module")
def new_cluster(
    can_have_hosts: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[int], clusters.Cluster]]:
    """Makes clusters of so many hosts, which end with the module."""
    with ExitStack() as stack:
        yield lambda count: stack.enter_context(
            clusters.Cluster(count, tmp_path_factory.mktemp("cluster") / "hosts")
        )


@pytest.fixture(scope="module")
def cluster(new_cluster: Callable[[int], clusters.Cluster]) -> clusters.Cluster:
    """Three hosts for the tests of a module, which leave them as they found them."""
    return new_cluster(3)
