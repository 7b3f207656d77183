"""A run folder with an export, for tests of commands that read one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ds_llama.data.tokenizer import train_tokenizer
from ds_llama.weights.export import export_model
from tests.unit.evals.models import small

TEXT = "the quick brown fox jumps over the lazy dog and goes home again\n"


def exported_run(folder: Path, **changes: Any) -> Path:
    """`folder` with a tokenizer, random fp32 weights that go with it, and a run.json."""
    (folder / "text.txt").write_text(TEXT * 40)
    train_tokenizer([folder / "text.txt"], folder / "tokenizer", vocab_size=290)
    shape = {"vocab_size": 290, "max_position_embeddings": 128, "eos_token_id": 2}
    model = small(**(shape | changes)).float()
    export_model(model, model.config, folder / "export", tokenizer=folder / "tokenizer")
    run = {"model": model.config.to_hf(), "data": {"sequence_length": 48}}
    (folder / "run.json").write_text(json.dumps(run))
    return folder


def write_rows(path: Path, *rows: Mapping[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
