"""A run's collectives wait as long as it says, in every group and whatever the environment says."""

from __future__ import annotations

import os
import subprocess
import sys

RANK = """
from datetime import timedelta
import torch, deepspeed
from deepspeed.utils import groups
from ds_llama.zero import world
world.join(timedelta(minutes=47))
data_parallel, own = groups._get_data_parallel_group(), deepspeed.comm.new_group([0])
for group in (torch.distributed.group.WORLD, data_parallel, own):
    print(group._get_backend(torch.device("cpu")).options._timeout)
"""


def test_every_group_waits_as_long() -> None:
    """DEEPSPEED_TIMEOUT, 5 minutes here, is for the world's group, and only where none is given."""
    env = os.environ | {"DEEPSPEED_TIMEOUT": "5", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RANK],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == ["0:47:00"] * 3
