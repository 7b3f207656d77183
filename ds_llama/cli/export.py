"""`ds-llama export CHECKPOINT OUT`: a checkpoint as Hugging Face safetensors."""

from __future__ import annotations

import json
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ds_llama.cli.loading import EmaOption, step_with_average


class Dtype(str, Enum):
    """Words of `--dtype`."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


DtypeOption = Annotated[
    Dtype | None, typer.Option(help="Dtype of the weights; the source's by default.")
]
ShardOption = Annotated[
    str, typer.Option("--max-shard-size", help="Largest file, such as 4GiB or 500MB.")
]
TokenizerOption = Annotated[
    Path | None, typer.Option(help="Tokenizer folder or file to copy along.", exists=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def command(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A step, checkpoints, run or exported folder; the newest complete one is taken.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
    dtype: DtypeOption = None,
    max_shard_size: ShardOption = "4GiB",
    tokenizer: TokenizerOption = None,
    ema: EmaOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a checkpoint as Hugging Face safetensors that LlamaForCausalLM.from_pretrained loads.

    From a training checkpoint of any stage, offload and world size, in one process.
    """
    from ds_llama.commit import listing

    limit = checked(max_shard_size, tokenizer)
    found = listing.find(step_with_average(checkpoint) if ema else checkpoint)

    import torch

    from ds_llama.checkpoint.offline import export_step
    from ds_llama.weights.convert import convert_folder

    write = partial(export_step, ema=ema) if found.kind == "step" else convert_folder
    wanted = getattr(torch, dtype.value) if dtype else None
    write(found.path, out, dtype=wanted, tokenizer=tokenizer, max_shard_bytes=limit)
    report(found.path, out, as_json=as_json)


def checked(max_shard_size: str, tokenizer: Path | None) -> int:
    """Bytes of the largest file. Raises CallError for none, or when no tokenizer is there."""
    from ds_llama.errors import CallError
    from ds_llama.units import parse_bytes

    limit = parse_bytes(max_shard_size, where="--max-shard-size")
    if limit < 1:
        raise CallError(
            f"a file of {max_shard_size} holds no tensor",
            where="--max-shard-size",
            remedy="give a size such as 4GiB; a tensor that is larger has a file of its own",
        )
    if tokenizer is not None:
        from ds_llama.data.tokenizer import load_tokenizer

        load_tokenizer(tokenizer)
    return limit


def report(source: Path, out: Path, *, as_json: bool) -> None:
    """Say what was written: files and bytes."""
    from ds_llama.units import format_bytes

    files = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    if as_json:
        print(json.dumps({"source": str(source), "out": str(out), "files": files}, indent=2))
        return
    print(f"{source} -> {out}: {len(files)} files, {format_bytes(sum(files.values()))}")
    if not {"tokenizer.model", "tokenizer.json"} & files.keys():
        typer.echo("no tokenizer came along; --tokenizer PATH takes one", err=True)
