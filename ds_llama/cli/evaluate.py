"""`ds-llama eval`: loss and perplexity of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ds_llama.cli.loading import EmaOption


def command(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A step folder, a checkpoints folder, a run folder, or an exported folder.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None, typer.Option(help="Prefix of a token shard; the run's validation shard if any.")
    ] = None,
    sequence_length: Annotated[
        int | None, typer.Option(min=2, help="Tokens a window; the run's, else at most 2048.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows a batch.")] = 4,
    max_batches: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many batches.")
    ] = None,
    ema: EmaOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Loss per token, perplexity and the number of tokens, over every token of a shard."""
    from ds_llama.cli.loading import load_for_inference
    from ds_llama.data import open_data
    from ds_llama.evals.load import find_run, locate
    from ds_llama.evals.perplexity import evaluate

    locate(checkpoint)  # a path that is none is the first thing to say
    section = (find_run(checkpoint) or {}).get("data", {})
    shard = _shard(data, section, checkpoint)
    loaded = load_for_inference(checkpoint, ema=ema)
    length = (
        sequence_length
        or section.get("sequence_length")
        or min(2048, loaded.config.max_position_embeddings)
    )
    windows, _ = open_data(shard, length, seed=0)
    found = evaluate(
        loaded.model,
        windows,
        micro_batch_size=batch_size,
        max_batches=max_batches,
        vocab_size=loaded.config.vocab_size,
    )
    report = {
        "checkpoint": str(checkpoint),
        "ema": ema,
        "data": shard,
        "sequence_length": length,
        **found.to_dict(),
    }
    print(json.dumps(report) if as_json else _text(report))
    return 0


def _shard(given: str | None, section: dict[str, Any], checkpoint: Path) -> str:
    from ds_llama.errors import CallError

    shard = given or section.get("validation")
    if not shard:
        raise CallError(
            "no data to evaluate on: no run.json above the checkpoint names a validation shard",
            where=str(checkpoint),
            remedy="give --data with the prefix of a token shard",
        )
    return str(shard)


def _text(report: dict[str, Any]) -> str:
    return (
        f"loss {report['loss']:.4f} nats a token, perplexity {report['perplexity']:.4f}, "
        f"over {report['tokens']:,} tokens of {report['data']} "
        f"in windows of {report['sequence_length']}"
    )
