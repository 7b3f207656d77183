"""Runs of a tiny model on a Slurm cluster, and on one host alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ds_llama
from ds_llama.data import ShardWriter
from tests.campaigns import kill
from tests.multinode.slurm_cluster import SlurmCluster, wait

ROOT = Path(ds_llama.__file__).parents[1]
SCRIPT = ROOT / "launch" / "slurm.sbatch"
_EXTENSIONS = os.environ.get("TORCH_EXTENSIONS_DIR") or os.path.expanduser(
    "~/.cache/torch_extensions"
)
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "DS_ACCELERATOR": "cpu",
    "WANDB_MODE": "offline",
    "DS_LLAMA_CHECK_S": "60",
    "TORCH_EXTENSIONS_DIR": _EXTENSIONS,
}
_MODEL = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Runs:
    """A folder with a shard of random tokens and runs over it, which do not end by themselves."""

    cluster: SlurmCluster
    folder: Path

    def prepare(self) -> None:
        """Write the shard."""
        tokens = np.random.default_rng(0).integers(0, 256, 1 << 16)
        with ShardWriter(self.folder / "shard", vocab_size=256) as writer:
            writer.add(tokens)

    def write(self, name: str, **sections: Any) -> str:
        """A run's file; sections are taken instead of the default ones."""
        run = {
            "model": _MODEL,
            "data": {"train": "shard", "sequence_length": 32},
            "optimizer": {"lr": 1e-3, "schedule": "constant"},
            "train": {"steps": 100000, "global_batch_size": 12, "micro_batch_size": 1},
            "checkpoint": {"export": False},
            "deepspeed": "zero2",
            "output": f"runs/{name}",
        }
        (self.folder / f"{name}.json").write_text(json.dumps(run | sections))
        return f"{name}.json"

    def submit(self, run: str, *options: str, **env: str) -> str:
        """The id of a job of launch/slurm.sbatch on two nodes, or as the options say."""
        usual = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1")
        words = ["sbatch", "--parsable", *usual, *options, str(SCRIPT), run]
        done = self.cluster.run(*words, env=ENVIRONMENT | env, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def start_here(self, run: str, nproc: int) -> subprocess.Popen[bytes]:
        """The run on this host, outside of the cluster."""
        with (self.folder / f"{run}.out").open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "ds_llama", "train", run, "--nproc", str(nproc)],
                cwd=self.folder,
                env=os.environ | ENVIRONMENT | {"OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def curve(self, name: str) -> list[list[Any]]:
        """Step, loss, norm, … of each step that the run has made so far."""
        path = self.folder / "runs" / name
        return kill.curve(path) if (path / "metrics.jsonl").exists() else []

    def wait_for_steps(self, name: str, steps: int, timeout_s: float = 600.0) -> None:
        """Until the run has made so many steps."""
        wait(lambda: len(self.curve(name)) >= steps, timeout_s, what=f"step {steps} of {name}")

    def newest(self, name: str) -> int | None:
        """The step of its newest complete checkpoint."""
        return kill.newest(self.folder / "runs" / name / "checkpoints")

    def printed(self, job: str) -> str:
        """What the job's script and steps have printed."""
        path = self.folder / f"slurm-{job}.out"
        return path.read_text(errors="replace") if path.exists() else ""
