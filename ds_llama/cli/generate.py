"""`ds-llama generate`: text from a checkpoint."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ds_llama.cli.loading import EmaOption

if TYPE_CHECKING:
    from ds_llama.evals.complete import Completion
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
        list[str] | None,
        typer.Option(help="Text to go on from; may be given again.", show_default=False),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A file with a prompt in each line; - is standard input."),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Prompts are a user's messages, by the tokenizer's template; without any, a "
            "conversation on standard input, a message a line.",
        ),
    ] = False,
    system: Annotated[
        str | None, typer.Option(help="What the template of --chat says before all messages.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to add at most.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many likely tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from this share of probability.")
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1 makes tokens that were there before less likely.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="Text to end before; may be given again.", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts that run at once.")] = 16,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer's file or folder; the checkpoint's own if any.")
    ] = None,
    ema: EmaOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Write on from one or more prompts, or answer them."""
    from ds_llama.cli.conversation import converse
    from ds_llama.cli.loading import load_for_inference
    from ds_llama.cli.screen import Screen, screened
    from ds_llama.evals.sampling import Sampling

    sampling = Sampling(temperature, top_k, top_p, seed, repetition_penalty)
    asked = _prompts(prompt or [], prompts, chat=chat, system=system)
    loaded = load_for_inference(checkpoint, ema=ema)
    coder = _coder(loaded, tokenizer or loaded.tokenizer, checkpoint, chat=chat, system=system)
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "stop": stop or [],
        "batch_size": batch_size,
    }
    start = time.perf_counter()
    if asked:
        screen = None if as_json else Screen(["" for _ in asked] if chat else asked)
        written = screened(screen, loaded, coder, asked, sampling=sampling, **settings)
        seconds = time.perf_counter() - start
    else:
        asked, written, seconds = converse(loaded, coder, sampling, quiet=as_json, **settings)
    if as_json:
        print(json.dumps(_document(asked, written, seconds)))
    return 0


def _prompts(given: list[str], file: Path | None, *, chat: bool, system: str | None) -> list[str]:
    """All prompts, those of the file last. None are for a conversation, else a CallError."""
    from ds_llama.errors import CallError

    if system is not None and not chat:
        raise CallError("--system is for --chat", where="--system", remedy="leave it out")
    asked = [*given, *(_lines(file) if file is not None else [])]
    if not asked and not (chat and file is None):
        raise CallError(
            "there is no prompt",
            where="--prompt" if file is None else str(file),
            remedy="give --prompt TEXT, or --prompts FILE with a prompt in each line",
        )
    for text in [*asked, system or ""]:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise CallError(
                f"a prompt is not UTF-8: {text!r}", where="--prompt", remedy="give it in UTF-8"
            ) from None
    return asked


def _lines(file: Path) -> list[str]:
    """The lines of a file; an empty one is a prompt too, for each has its answer."""
    from ds_llama.errors import CallError

    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CallError(
            f"the prompts cannot be read: {error}",
            where=str(file),
            remedy="name a UTF-8 file with a prompt in each line",
        ) from None
    lines = text.replace("\r\n", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def _coder(
    loaded: Loaded, path: Path | None, checkpoint: Path, *, chat: bool, system: str | None
) -> Any:
    from ds_llama.errors import CallError
    from ds_llama.evals.coder import ChatCoder, TextCoder

    if path is None:
        raise CallError(
            "the checkpoint does not say which tokenizer it was trained with",
            where=str(checkpoint),
            remedy="give --tokenizer with the tokenizer's file or folder",
        )
    return ChatCoder(path, loaded.eos, system=system) if chat else TextCoder(path, loaded.eos)


def _document(prompts: list[str], written: list[Completion], seconds: float) -> dict[str, object]:
    """`tokens` are the new ones, `seconds` without loading."""
    return {
        "prompts": prompts,
        "texts": [each.text for each in written],
        "tokens": [each.tokens for each in written],
        "finish_reasons": [each.finish for each in written],
        "seconds": seconds,
        "tokens_per_s": sum(len(each.tokens) for each in written) / (seconds or 1),
    }
