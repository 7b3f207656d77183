"""`ds-llama import SRC OUT`: foreign weights, checked, as a folder that a run can start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ds_llama.cli.export import (
    DtypeOption,
    JsonOption,
    ShardOption,
    TokenizerOption,
    checked,
    report,
)


def command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC",
            help="Hugging Face folder (safetensors or .bin), or Meta's (consolidated.*.pth).",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)],
    dtype: DtypeOption = None,
    max_shard_size: ShardOption = "4GiB",
    tokenizer: TokenizerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a LLaMA's weights against its config and write a folder to start a run from.

    Name that folder in a run: {"model": {"pretrained": "OUT"}}. No pickle is run: of .bin and .pth
    only tensors are read.
    """
    limit = checked(max_shard_size, tokenizer)

    import torch

    from ds_llama.weights.convert import convert_folder

    wanted = getattr(torch, dtype.value) if dtype else None
    convert_folder(source, out, dtype=wanted, tokenizer=tokenizer, max_shard_bytes=limit)
    report(source, out, as_json=as_json)
