"""The same run on several hosts and on one with as many ranks: are the losses the same?

    python -m tests.campaigns.multinode_losses

Hosts in namespaces (tests/multinode/cluster.py), `ds-llama train RUN --hostfile H` on the first of
them. Stages 1, 2 and 3, over two and three hosts with uneven slots, each compared with one host
with the same number of slots: every loss, norm and learning rate, to the last bit. Then stage 3 by
each of the other launchers.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ds_llama.data import ShardWriter
from tests.campaigns.kill import curve
from tests.multinode.cluster import Cluster

REPOSITORY = Path(__file__).parents[2]
STEPS = 4
LAYOUTS = ((1, 2), (2, 1, 1))
STAGES = (1, 2, 3)
LAUNCHERS = ("pdsh", "torchrun", "openmpi", "mpich")


def train(
    cluster: Cluster, folder: Path, stage: int, hosts: Sequence[tuple[int, int]], *words: str
) -> list[list[Any]]:
    """What metrics.jsonl says after a run over these hosts, each a number and its slots."""
    from ds_llama.selftest.tiny import MODEL, TOKENS, VOCAB

    if not (folder / "shard.bin").exists():
        folder.mkdir(exist_ok=True)
        with ShardWriter(folder / "shard", vocab_size=VOCAB) as writer:
            writer.add(np.random.default_rng(0).integers(0, VOCAB, 16 * STEPS * TOKENS))
    name = f"stage{stage}-" + "-".join(f"{host}x{slots}" for host, slots in hosts)
    run = {
        "model": MODEL,
        "data": {"train": str(folder / "shard"), "sequence_length": TOKENS},
        "optimizer": {"lr": 1e-2},
        "train": {"steps": STEPS, "global_batch_size": 12, "micro_batch_size": 1},
        "checkpoint": {"every_steps": None, "export": False},
        "deepspeed": f"zero{stage}",
        "output": str(folder / name),
    }
    (folder / f"{name}.json").write_text(json.dumps(run))
    lines = [f"node{host} slots={slots}\n" for host, slots in hosts]
    (folder / f"{name}.hosts").write_text("".join(lines))
    env = {"PYTHONPATH": str(REPOSITORY), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    env["DS_LLAMA_CHECK_S"] = "60"
    command = ("-m", "ds_llama", "train", f"{name}.json", "--hostfile", f"{name}.hosts", *words)
    done = cluster.run(0, sys.executable, *command, env=env, cwd=folder, timeout_s=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = curve(folder / name)
    assert len(found) == STEPS
    return found


def main() -> int:
    """All layouts and stages; 1 when one differs."""
    wrong = 0
    with ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ds-llama-hosts-")))
        cluster = stack.enter_context(Cluster(3, path / "hosts"))
        for stage, layout in product(STAGES, LAYOUTS):
            one = train(cluster, path / "runs", stage, [(0, sum(layout))])
            several = train(cluster, path / "runs", stage, list(enumerate(layout)))
            alike = "the same bits" if one == several else f"{one} and {several}"
            print(f"stage {stage}, slots {layout}: {alike}", flush=True)
            wrong += one != several
        one = train(cluster, path / "one", 3, [(0, 3)])
        for launcher in LAUNCHERS:
            folder = path / launcher
            several = train(cluster, folder, 3, [(0, 1), (1, 2)], "--launcher", launcher)
            alike = "the same bits" if one == several else f"{one} and {several}"
            print(f"{launcher}: {alike}", flush=True)
            wrong += one != several
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
