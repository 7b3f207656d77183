"""`ds-llama data`: train a tokenizer, tokenize a corpus into shards, show a shard."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ds_llama.cli.data_progress import bar_or_lines
from ds_llama.cli.outcome import Terminated
from ds_llama.errors import CallError
from ds_llama.units import format_bytes, format_count, parse_bytes

if TYPE_CHECKING:
    from ds_llama.data.sources import Options


class ModelType(str, Enum):
    """What sentencepiece has, of those that transformers reads."""

    bpe = "bpe"
    unigram = "unigram"


class Documents(str, Enum):
    """What of a plain text is one document: paragraphs end at blank lines."""

    file = "file"
    line = "line"
    paragraph = "paragraph"


class Format(str, Enum):
    """What a document is: text, or a record of the forms of `data/chat`."""

    text = "text"
    chat = "chat"
    messages = "messages"
    sharegpt = "sharegpt"
    alpaca = "alpaca"
    completion = "completion"
    rows = "rows"


app = typer.Typer(no_args_is_help=True, add_completion=False)

Sources = Annotated[list[str], typer.Argument(metavar="SRC…", help="files and folders with text")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="folder to write into")]
Suffixes = Annotated[
    list[str] | None,
    typer.Option("--suffix", metavar=".EXT", help="take files of folders that end so; repeatable"),
]
Excludes = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="NAME",
        help="pass over files and folders so named, globs too; repeatable",
    ),
]
TextField = Annotated[str, typer.Option(help="key or column of a record that holds the text")]
Force = Annotated[bool, typer.Option("--force", help="do it again although nothing has changed")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON document")]


@app.command("tokenizer")
def train(
    sources: Sources,
    out: Out,
    vocab_size: Annotated[
        int, typer.Option(min=1, help="pieces, bytes and specials included")
    ] = 32000,
    sample_lines: Annotated[
        int, typer.Option(min=1, help="train on this many lines at most")
    ] = 2_000_000,
    character_coverage: Annotated[
        float, typer.Option(min=0.9, max=1.0, help="share of the characters that get pieces")
    ] = 0.99995,
    model_type: Annotated[ModelType, typer.Option(help="how pieces are found")] = ModelType.bpe,
    no_byte_fallback: Annotated[
        bool, typer.Option("--no-byte-fallback", help="other characters are <unk>, not bytes")
    ] = False,
    user_defined_symbol: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="one piece wherever a text has it; repeatable"),
    ] = None,
    control_symbol: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="a piece that no text becomes, for chat templates; repeatable",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="which lines are drawn")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="0: all cores")] = 0,
    suffix: Suffixes = None,
    exclude: Excludes = None,
    text_field: TextField = "text",
    force: Force = False,
) -> None:
    """Train a sentencepiece model (LLaMA's settings) on text."""
    from ds_llama.data.tokenizer_training import train_tokenizer

    trained = train_tokenizer(
        sources,
        out,
        vocab_size=vocab_size,
        model_type=model_type.value,
        byte_fallback=not no_byte_fallback,
        user_defined_symbols=user_defined_symbol or (),
        control_symbols=control_symbol or (),
        sample_lines=sample_lines,
        character_coverage=character_coverage,
        seed=seed,
        threads=threads or None,
        options=_options(suffix, exclude, text_field),
        force=force,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    state = "wrote" if trained else "nothing has changed, kept"
    print(f"{state} {out / 'tokenizer.model'}")


@app.command("prepare")
def prepare(
    sources: Sources,
    tokenizer: Annotated[Path, typer.Option(metavar="T", help="tokenizer file or its folder")],
    out: Out,
    validation: Annotated[
        float, typer.Option(metavar="FRACTION", help="documents held out")
    ] = 0.01,
    workers: Annotated[int, typer.Option(min=0, help="processes; 0: one per core")] = 0,
    bos: Annotated[bool, typer.Option(help="begin each document with BOS")] = True,
    eos: Annotated[bool, typer.Option(help="end each document with EOS")] = True,
    format: Annotated[
        Format, typer.Option(help="text; or records, of which answers are learnt: chat tells which")
    ] = Format.text,
    chat_template: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="or a shipped one's name; the tokenizer's own if any"),
    ] = None,
    deduplicate: Annotated[
        bool, typer.Option("--deduplicate", help="keep the first of equal documents")
    ] = False,
    max_document_bytes: Annotated[
        str | None, typer.Option(metavar="BYTES", help="longer ones are bad records, such as 1MiB")
    ] = None,
    max_bad: Annotated[
        str | None,
        typer.Option(metavar="N", help="stop beyond so many bad records, or such a share: 1%"),
    ] = None,
    suffix: Suffixes = None,
    exclude: Excludes = None,
    text_field: TextField = "text",
    documents: Annotated[
        Documents,
        typer.Option(help="what of plain text is one document; blank lines end a paragraph"),
    ] = Documents.file,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Tokenize text into OUT/train and OUT/validation, in the Megatron layout.

    The same call goes on with what was begun and came to no end.
    """
    from ds_llama.data.prepare import prepare as run

    most = (
        parse_bytes(max_document_bytes, where="--max-document-bytes")
        if max_document_bytes
        else None
    )
    with _stopped(out), bar_or_lines() as progress:
        done = run(
            sources,
            tokenizer,
            out,
            validation_fraction=validation,
            workers=workers or len(os.sched_getaffinity(0)),
            bos=bos,
            eos=eos,
            format=format.value,
            chat_template=chat_template,
            deduplicate=deduplicate,
            max_document_bytes=most or None,
            max_bad=max_bad,
            options=_options(suffix, exclude, text_field, documents),
            force=force,
            progress=progress,
        )
    print("\n".join(_bad_lines(out, done.manifest["input"])), end="", file=sys.stderr)
    if as_json:
        _print_json({"folder": str(out), "skipped": done.skipped, **done.manifest})
    else:
        print("\n".join(_prepared_lines(out, done.skipped, done.manifest)))


@app.command("inspect")
def inspect(
    prefix: Annotated[str, typer.Argument(help="shard: its path without .bin or .idx")],
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="T", help="tokenizer, to decode a sample")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="documents to decode")] = 2,
    tokens: Annotated[int, typer.Option(min=1, help="tokens to decode of each")] = 64,
    as_json: AsJson = False,
) -> None:
    """Show a shard's counts, document lengths, and decoded samples."""
    from ds_llama.data.inspection import summary
    from ds_llama.data.shards import Shard
    from ds_llama.data.tokenizer import load_tokenizer

    if not Path(f"{prefix}.idx").exists():
        raise CallError(
            f"there is no token shard {prefix}",
            where=f"{prefix}.idx",
            remedy="name a shard by its path without .bin and .idx",
        )
    decoder = load_tokenizer(tokenizer) if tokenizer else None
    found = summary(Shard(prefix), decoder, documents=samples, tokens=tokens)
    if as_json:
        _print_json(found)
    else:
        print("\n".join(_inspected_lines(found)))


def _options(
    suffix: list[str] | None,
    exclude: list[str] | None,
    text_field: str,
    documents: Documents = Documents.file,
) -> Options:
    from ds_llama.data.sources import Options

    suffixes = tuple(s.lower() if s.startswith(".") else f".{s.lower()}" for s in suffix or ())
    return Options(suffixes, tuple(exclude or ()), text_field, documents.value)


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _prepared_lines(out: Path, skipped: bool, manifest: dict[str, Any]) -> list[str]:
    read = manifest["input"]
    lines = [f"nothing has changed, kept {out}"] if skipped else []
    duplicates = f"{read['duplicates']} duplicates, " if manifest["deduplicate"] else ""
    lines.append(
        f"read {read['files']} files, {format_bytes(read['bytes'])}: "
        f"{read['documents']} documents, {duplicates}{sum(read['bad'].values())} bad records"
    )
    for name, shard in manifest["shards"].items():
        tokens = format_count(shard["tokens"])
        lines.append(f"{out / name}: {shard['documents']} documents, {tokens} tokens")
    return lines


def _bad_lines(out: Path, read: dict[str, Any]) -> list[str]:
    """Which records were no documents, and where they are; nothing when there are none."""
    if not read["bad"]:
        return []
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(read["bad"].items()))
    first = [f"  {problem}" for problem in read["first_bad"]]
    more = sum(read["bad"].values()) - len(first)
    first += [f"  and {more} more"] if more else []
    return [f"bad records ({kinds}), all in {out / 'rejects.jsonl'}:", *first, ""]


@contextmanager
def _stopped(out: Path) -> Iterator[None]:
    """Whoever stops it hears how to go on."""
    from ds_llama.data.prepare import share_done

    try:
        yield
    except (KeyboardInterrupt, Terminated):
        share = share_done(out)
        if share is not None:
            print(f"stopped at {100 * share:.0f} %; the same call goes on there", file=sys.stderr)
        raise


def _inspected_lines(found: dict[str, Any]) -> list[str]:
    lines = [
        f"{found['prefix']}: {found['documents']} documents, {found['tokens']} tokens, "
        f"{format_bytes(found['bytes'])} of {found['id_type']}, largest id {found['largest_id']}"
    ]
    if found["learnt_tokens"] is not None:
        share = found["learnt_tokens"] / max(1, found["tokens"])
        lines.append(f"{found['learnt_tokens']} tokens are learnt, {share:.1%}: it has a mask")
    if found["lengths"]:
        lengths = ", ".join(f"{name} {value:.0f}" for name, value in found["lengths"].items())
        lines.append(f"tokens per document: {lengths}")
    most = max((row["sequences"] for row in found["histogram"]), default=0)
    for row in found["histogram"]:
        bar = "#" * max(1, 40 * row["sequences"] // most)
        lines.append(f"  {row['from']:>9} to {row['below'] - 1:<9} {row['sequences']:>9} {bar}")
    for sample in found.get("samples", []):
        lines += [f"document {sample['sequence']}:", sample["text"]]
    return lines
