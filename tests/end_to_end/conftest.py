"""A corpus, a tokenizer and shards, made once by the commands that a user would type."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

STEPS = 6


@dataclass(frozen=True)
class Workspace:
    """A folder with data in it, and the command line run there."""

    folder: Path

    def environment(self) -> dict[str, str]:
        return os.environ | {
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "WANDB_MODE": "offline",
            "COLUMNS": "100",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }

    def start(self, *words: str, **settings: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "ds_llama", *words],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **settings,
        )

    def run(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=240)
        assert process.returncode == code, f"{words}\n{out[-3000:]}\n{err[-3000:]}"
        return subprocess.CompletedProcess(words, code, out, err)

    def write_run(self, name: str, **sections: Any) -> str:
        """A run over the tiny model; sections are merged into the default ones."""
        run: dict[str, Any] = {
            "model": {
                "vocab_size": 400,
                "hidden_size": 64,
                "intermediate_size": 160,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 128,
            },
            "data": {
                "train": "shards/train",
                "validation": "shards/validation",
                "sequence_length": 64,
                "tokenizer": "tokenizer",
            },
            "optimizer": {"lr": 1e-3, "warmup_steps": 2},
            "train": {"steps": STEPS, "global_batch_size": 8, "micro_batch_size": 2},
            "evaluation": {"every_steps": 3, "max_batches": 2},
            "checkpoint": {"every_steps": 3},
            "deepspeed": "zero2",
            "output": f"runs/{name}",
        }
        for key, value in sections.items():
            merged = isinstance(value, dict) and isinstance(run.get(key), dict)
            run[key] = run[key] | value if merged else value
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(run))
        return path.name

    def rows(self, name: str) -> list[dict[str, Any]]:
        text = (self.folder / "runs" / name / "metrics.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("workspace")
    source = Path(sysconfig.get_paths()["stdlib"]) / "json"
    space = Workspace(folder)
    words = ("--suffix", ".py", "--out", "tokenizer", "--vocab-size", "400")
    space.run("data", "tokenizer", str(source), *words)
    words = ("--suffix", ".py", "--tokenizer", "tokenizer", "--out", "shards")
    space.run("data", "prepare", str(source), *words, "--validation", "0.3")
    return space
