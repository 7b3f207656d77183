"""`ds-llama eval`: perplexity and task scores of a checkpoint."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ds_llama.cli.loading import EmaOption

if TYPE_CHECKING:
    from ds_llama.data.tokenizer import Tokenizer
    from ds_llama.evals.load import Loaded
    from ds_llama.evals.windows import Corpus

_ROWS = (".jsonl", ".ndjson")
_NEW_TOKENS = 32


class Call(NamedTuple):
    """The command line, without what is about printing."""

    checkpoint: Path
    data: str | None
    sequence_length: int | None
    stride: int | None
    batch_size: int
    max_batches: int | None
    generate: bool
    max_new_tokens: int | None
    tokenizer: Path | None
    out: Path | None
    lm_eval: str | None
    ema: bool

    def refuse(self, why: str, *names: str) -> None:
        """Raises CallError for the first of these options that was given: it would do nothing."""
        from ds_llama.errors import CallError

        for name in names:
            if getattr(self, name):
                option = f"--{name.replace('_', '-')}"
                raise CallError(f"{option} {why}", where=option, remedy="leave it out")


def command(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A step folder, a checkpoints folder, a run folder, or an exported folder.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            help="Prefix of a token shard, a text file, or rows in a .jsonl; the run's validation "
            "shard if any."
        ),
    ] = None,
    sequence_length: Annotated[
        int | None, typer.Option(min=2, help="Tokens a window; the run's, else at most 2048.")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens from window to window; a window less one."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows or sequences a batch.")] = 4,
    max_batches: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many batches, of rows too.")
    ] = None,
    generate: Annotated[
        bool, typer.Option("--generate", help="Rows with choices: by what the model writes.")
    ] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help=f"Of a written answer; {_NEW_TOKENS}.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer's file or folder; the checkpoint's own if any.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write what was answered to each row, as JSONL.")
    ] = None,
    lm_eval: Annotated[
        str | None,
        typer.Option(help="Tasks of lm-eval, with commas; for an export, if it is installed."),
    ] = None,
    ema: EmaOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> int:
    """Perplexity on a token shard or text; accuracy, F1 and exact match on rows of a JSONL."""
    from ds_llama.cli.evaluate_table import text
    from ds_llama.evals.load import locate

    locate(checkpoint)  # a path that is none is the first thing to say
    call = Call(
        checkpoint,
        data,
        sequence_length,
        stride,
        batch_size,
        max_batches,
        generate,
        max_new_tokens,
        tokenizer,
        out,
        lm_eval,
        ema,
    )
    report = {"checkpoint": str(checkpoint), "ema": ema, **_evaluated(call)}
    report = {key: None if _is_no_number(value) else value for key, value in report.items()}
    print(json.dumps(report) if as_json else text(report))
    return 0


def _is_no_number(value: Any) -> bool:
    """JSON has neither NaN nor infinity."""
    return isinstance(value, float) and not math.isfinite(value)


def _evaluated(call: Call) -> dict[str, Any]:
    if call.lm_eval:
        return _by_harness(call)
    if call.data and call.data.lower().endswith(_ROWS):
        return _on_rows(call, call.data)
    return _on_tokens(call)


def _on_tokens(call: Call) -> dict[str, Any]:
    from ds_llama.cli.loading import load_for_inference
    from ds_llama.evals.complete import positions
    from ds_llama.evals.load import find_run
    from ds_llama.evals.perplexity import evaluate
    from ds_llama.evals.windows import Strided

    call.refuse("is for rows in a .jsonl", "out", "generate", "max_new_tokens")
    section = (find_run(call.checkpoint) or {}).get("data", {})
    path = _data(call, section)
    loaded = load_for_inference(call.checkpoint, ema=call.ema)
    length = (
        call.sequence_length
        or section.get("sequence_length")
        or min(2048, loaded.config.max_position_embeddings)
    )
    windows = Strided(_corpus(call, path, loaded), length, call.stride)
    if windows.length > (room := positions(loaded.config)):
        note = f"note: windows of {windows.length} tokens go beyond the model's {room} positions"
        print(note, file=sys.stderr)
    found = evaluate(
        loaded.model,
        windows,
        micro_batch_size=call.batch_size,
        max_batches=call.max_batches,
        vocab_size=loaded.config.vocab_size,
    )
    # the bytes are those of all windows
    whole = call.max_batches is None or call.max_batches * call.batch_size >= len(windows)
    size = windows.corpus.utf8_bytes if whole else None
    return {
        "task": "perplexity",
        "data": path,
        "sequence_length": length,
        "stride": windows.stride,
        **found.to_dict(),
        "bits_per_byte": found.bits_per_byte(size) if size else None,
    }


def _data(call: Call, section: dict[str, Any]) -> str:
    from ds_llama.errors import CallError

    path = call.data or section.get("validation")
    if not path:
        raise CallError(
            "no data to evaluate on: no run.json above the checkpoint names a validation shard",
            where=str(call.checkpoint),
            remedy="give --data with the prefix of a token shard, a text file, or a .jsonl of rows",
        )
    return str(path)


def _corpus(call: Call, path: str, loaded: Loaded) -> Corpus:
    from ds_llama.evals.windows import is_shard, read_shard, read_text

    part = Path(path).suffix in (".bin", ".idx") and not Path(path).is_file()
    if is_shard(path) or part:
        return read_shard(path, _tokenizer_if_any(call, loaded))
    return read_text(path, _tokenizer(call, loaded))


def _on_rows(call: Call, path: str) -> dict[str, Any]:
    from ds_llama.cli.loading import load_for_inference
    from ds_llama.evals.rows import read_rows
    from ds_llama.evals.tasks import by_generation, by_likelihood

    call.refuse("is for perplexity, and these are rows", "sequence_length", "stride")
    if call.out:
        _require_folder(call.out)
    rows = read_rows(path)[: call.max_batches and call.max_batches * call.batch_size]
    written = call.generate or not rows[0].choices
    if not written:
        call.refuse("needs --generate where rows have choices", "max_new_tokens")
    loaded = load_for_inference(call.checkpoint, ema=call.ema)
    coder = _tokenizer(call, loaded)
    if written:
        new_tokens = call.max_new_tokens or _NEW_TOKENS
        scores = by_generation(
            loaded, coder, rows, batch_size=call.batch_size, max_new_tokens=new_tokens
        )
    else:
        scores = by_likelihood(loaded, coder, rows, batch_size=call.batch_size)
    if call.out:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in scores.rows]
        call.out.write_text("".join(lines), encoding="utf-8")
    return {"data": path, **scores.summary}


def _by_harness(call: Call) -> dict[str, Any]:
    from ds_llama.errors import CheckpointError
    from ds_llama.evals.harness import require_harness, run_harness
    from ds_llama.evals.load import locate

    names = ("data", "sequence_length", "stride", "generate", "max_new_tokens", "tokenizer", "out")
    call.refuse("is nothing that lm-eval is told", *names, "ema")
    require_harness()
    kind, folder = locate(call.checkpoint)
    if kind != "export":
        raise CheckpointError(
            "lm-eval reads an exported folder, and this is a training checkpoint",
            where=str(folder),
            remedy=f"export it first: ds-llama export {folder} OUT",
        )

    import torch

    assert call.lm_eval is not None
    results = run_harness(
        folder,
        [name.strip() for name in call.lm_eval.split(",")],
        batch_size=call.batch_size,
        limit=call.max_batches and call.max_batches * call.batch_size,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    # what a task's author reports may be anything
    return {"task": "lm-eval", "results": json.loads(json.dumps(results, default=str))}


def _tokenizer(call: Call, loaded: Loaded) -> Tokenizer:
    from ds_llama.data.tokenizer import load_tokenizer
    from ds_llama.errors import CallError

    path = call.tokenizer or loaded.tokenizer
    if path is None:
        raise CallError(
            "the checkpoint does not say which tokenizer it was trained with",
            where=str(call.checkpoint),
            remedy="give --tokenizer with the tokenizer's file or folder",
        )
    return load_tokenizer(path)


def _tokenizer_if_any(call: Call, loaded: Loaded) -> Tokenizer | None:
    """None where it cannot be had: a training checkpoint has its path, maybe another machine's."""
    from ds_llama.errors import DsLlamaError

    try:
        return _tokenizer(call, loaded)
    except DsLlamaError:
        if call.tokenizer:
            raise
        return None


def _require_folder(out: Path) -> None:
    """Before hours of work, not after them."""
    from ds_llama.errors import CallError

    if out.is_dir() or not out.absolute().parent.is_dir():
        raise CallError(
            "this is a folder" if out.is_dir() else "there is no folder to write this file into",
            where=str(out),
            remedy="give --out with the name of a file in a folder that is there",
        )
