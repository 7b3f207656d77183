"""The lines of --dry-run, copied into a shell of one host, for sshd and a shell of another."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds_llama.launcher import shown
from ds_llama.launcher.hostfile import Host
from ds_llama.launcher.job import Job
from tests.multinode.cluster import Cluster
from tests.unit.launcher.test_shown import HOSTILE

pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize("launcher", ["ssh", "pdsh"])
def test_arguments_and_variables_arrive_unchanged(
    cluster: Cluster, tmp_path: Path, launcher: str
) -> None:
    python = tmp_path / "a python"
    python.write_text('#!/bin/sh\nuname -n\nprintf \'%s\\0\' "$ODD" "$@" > "$WHERE"\n')
    python.chmod(0o755)
    odd = "".join(HOSTILE)
    env = {"ODD": odd, "WHERE": str(tmp_path / "arrived")}
    hosts = (Host("node1", 1),)
    job = Job(hosts, "it", HOSTILE, "", env=env, cwd=str(tmp_path), python=str(python))
    [line] = shown.lines(job, launcher)
    done = cluster.run(0, "bash", "-c", line, cwd=tmp_path)
    assert (done.returncode, done.stdout.split()[-1]) == (0, "node1"), done.stderr
    first, *words, last = (tmp_path / "arrived").read_text().split("\0")
    assert (first, last) == (odd, "")
    assert tuple(words[words.index("it") + 1 :]) == HOSTILE
    assert "--node_rank=0" in words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a python", "arrived"]
