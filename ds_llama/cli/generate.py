"""`ds-llama generate`: text from a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ds_llama.cli.loading import EmaOption

if TYPE_CHECKING:
    from ds_llama.data.tokenizer import Tokenizer
    from ds_llama.evals.load import Loaded


def command(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A step folder, a checkpoints folder, a run folder, or an exported folder.",
            show_default=False,
        ),
    ],
    prompt: Annotated[
        list[str], typer.Option(help="Text to go on from; may be given again.", show_default=False)
    ],
    max_new_tokens: Annotated[int, typer.Option(min=0, help="Tokens to add at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many likely tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from this share of probability.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer's file or folder; the checkpoint's own if any.")
    ] = None,
    ema: EmaOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Write on from one or more prompts."""
    from ds_llama.cli.loading import load_for_inference
    from ds_llama.evals.generate import generate
    from ds_llama.evals.sampling import Sampling

    sampling = Sampling(temperature, top_k, top_p, seed)
    loaded = load_for_inference(checkpoint, ema=ema)
    coder = _open_tokenizer(tokenizer or loaded.tokenizer, checkpoint)
    prompts = [coder.encode(text, bos=coder.bos_id is not None) for text in prompt]
    new = generate(
        loaded.model,
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        eos=_eos(loaded, coder),
        vocab_size=coder.vocab_size,
    )
    texts = [coder.decode([*ids, *more]) for ids, more in zip(prompts, new, strict=True)]
    if as_json:
        samples = [
            {"prompt": given, "text": text, "new_tokens": more}
            for given, text, more in zip(prompt, texts, new, strict=True)
        ]
        print(json.dumps({"checkpoint": str(checkpoint), "samples": samples}))
    else:
        print("\n\n".join(texts))
    return 0


def _open_tokenizer(path: Path | None, checkpoint: Path) -> Tokenizer:
    from ds_llama.data.tokenizer import load_tokenizer
    from ds_llama.errors import CallError

    if path is None:
        raise CallError(
            "the checkpoint does not say which tokenizer it was trained with",
            where=str(checkpoint),
            remedy="give --tokenizer with the tokenizer's file or folder",
        )
    return load_tokenizer(path)


def _eos(loaded: Loaded, coder: Tokenizer) -> set[int]:
    """Ids that end a text: the tokenizer's, and those of the model's config."""
    configured = loaded.config.eos_token_id
    ids = configured if isinstance(configured, list | tuple) else [configured]
    return {int(i) for i in (*ids, coder.eos_id) if i is not None}
