"""Train a sentencepiece model with LLaMA's settings."""

from __future__ import annotations

import io
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ds_llama.data.fingerprint import fingerprint, read_json, write_json
from ds_llama.data.sources import Options, find_files, read
from ds_llama.data.tokenizer_json import write_transformers_files
from ds_llama.data.tokenizer_proto import with_exact_scores
from ds_llama.errors import CallError, ConfigError, DataError

# The training spec inside Meta's LLaMA-2 tokenizer.model, but for what `Recipe` holds, and threads.
LLAMA_SETTINGS: dict[str, Any] = {
    "split_digits": True,
    "split_by_unicode_script": True,
    "split_by_whitespace": True,
    "split_by_number": True,
    "allow_whitespace_only_pieces": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": True,
    "remove_extra_whitespaces": False,
    "max_sentencepiece_length": 16,
    "unk_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "pad_id": -1,
    "unk_surface": " \u2047 ",
}
# sentencepiece drops longer lines in silence: they are cut instead. UTF-8 has at most 4 bytes.
_LINE_CHARACTERS = 4096
_RECORD = "training.json"
_RESERVED = re.compile(r"<(unk|s|/s|0x[0-9A-F]{2})>")
TrainingProgress = Callable[[str], None]
ModelType = Literal["bpe", "unigram"]


@dataclass(frozen=True)
class Recipe:
    """What decides the pieces, beside the text.

    A user-defined symbol is one piece wherever a text has it. A control symbol is no text at all:
    `encode` never gives its id, a chat template does.
    """

    vocab_size: int
    model_type: ModelType
    byte_fallback: bool
    character_coverage: float
    user_defined_symbols: tuple[str, ...]
    control_symbols: tuple[str, ...]

    def __post_init__(self) -> None:
        """Raises `CallError` for symbols that cannot be pieces of their own."""
        seen: set[str] = set()
        for symbol in (*self.user_defined_symbols, *self.control_symbols):
            if not symbol:
                raise _wrong_symbol(symbol, "is empty")
            if symbol in seen:
                raise _wrong_symbol(symbol, "is given twice")
            if found := _RESERVED.search(symbol):
                raise _wrong_symbol(symbol, f"holds {found[0]}, which every tokenizer has")
            if "\0" in symbol:
                raise _wrong_symbol(symbol, "holds a NUL character")
            seen.add(symbol)


def train_tokenizer(
    files: Iterable[str | os.PathLike[str]],
    out_folder: str | os.PathLike[str],
    *,
    vocab_size: int,
    model_type: ModelType = "bpe",
    byte_fallback: bool = True,
    character_coverage: float = 0.99995,
    user_defined_symbols: Sequence[str] = (),
    control_symbols: Sequence[str] = (),
    sample_lines: int = 2_000_000,
    seed: int = 0,
    threads: int | None = None,
    options: Options | None = None,
    force: bool = False,
    progress: TrainingProgress | None = None,
) -> bool:
    """Train on files and folders; write `tokenizer.model` and what transformers needs.

    At most `sample_lines` lines are used, drawn evenly by `seed`. Returns False when the folder
    already holds the result of the same call (inputs judged by size and time, see `fingerprint`)
    and `force` is not set. Raises `DataError` when the corpus is empty or too small for the
    vocabulary, `ConfigError` when the vocabulary is too small for the corpus' characters.
    """
    recipe = Recipe(
        vocab_size,
        model_type,
        byte_fallback,
        character_coverage,
        tuple(user_defined_symbols),
        tuple(control_symbols),
    )
    # Lines are all that is used of a text, and a file of many is not to be held.
    options, out = replace(options or Options(), documents="line"), Path(out_folder)
    found, say = find_files(files, options), progress or (lambda line: None)
    threads = threads or _cores()
    asked = {**asdict(recipe), "sample_lines": sample_lines, "seed": seed, **options.asked()}
    if model_type == "unigram":
        asked["threads"] = threads  # each adds up a share of the text, and rounding shows in pieces
    mark = fingerprint(found, asked)
    done = (out / "tokenizer.model").is_file() and (out / "tokenizer.json").is_file()
    if done and not force and read_json(out / _RECORD).get("fingerprint") == mark:
        return False
    say(f"reading {len(found)} files")
    lines = sample(_lines(found, options, say), sample_lines, seed)
    where = ", ".join(str(path) for path in found[:3]) + (", ..." if len(found) > 3 else "")
    say(f"training {recipe.vocab_size} pieces on {len(lines)} lines")
    model = _train(lines, recipe, threads, where)
    _write(out, model)
    write_json(out / _RECORD, {"fingerprint": mark, "lines": len(lines), **asked})
    return True


def sample(lines: Iterator[str], count: int, seed: int) -> list[str]:
    """At most `count` of the lines, each with equal chance (Vitter's algorithm R, 1985)."""
    kept: list[str] = []
    draw = random.Random(seed).random
    for number, line in enumerate(lines):
        if number < count:
            kept.append(line)
        elif (place := int(draw() * (number + 1))) < count:
            kept[place] = line
    return kept


def _lines(files: Iterable[Path], options: Options, say: TrainingProgress) -> Iterator[str]:
    """At their end it is said how many records had no text."""
    bad, first = 0, ""
    for path in files:
        for record in read(path, options):
            if record.problem is not None:
                bad, first = bad + 1, first or f"{record.where}: {record.problem}"
            for line in record.text.split("\n"):
                for start in range(0, len(line), _LINE_CHARACTERS):
                    # NUL ends a C string inside sentencepiece.
                    yield line[start : start + _LINE_CHARACTERS].replace("\0", "")
    if bad:
        say(f"{bad} records have no text and are passed over; the first: {first}")


def _train(lines: list[str], recipe: Recipe, threads: int, where: str) -> bytes:
    import sentencepiece

    if not any(line.strip() for line in lines):
        raise DataError(
            "the corpus has no text to train a tokenizer on",
            where=where,
            remedy="name files with text; for JSON lines, --text-field says which key holds it",
        )
    result = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=result,
            vocab_size=recipe.vocab_size,
            model_type=recipe.model_type,
            byte_fallback=recipe.byte_fallback,
            character_coverage=recipe.character_coverage,
            # As a text has them when pieces are looked for.
            user_defined_symbols=[s.replace(" ", "\u2581") for s in recipe.user_defined_symbols],
            control_symbols=list(recipe.control_symbols),
            num_threads=threads,
            max_sentence_length=4 * _LINE_CHARACTERS + 4,
            minloglevel=4,
            **LLAMA_SETTINGS,
        )
    except (RuntimeError, OSError) as error:
        raise _explained(str(error), recipe.vocab_size, where) from error
    model = result.getvalue()
    return with_exact_scores(model) if recipe.model_type == "unigram" else model


def _wrong_symbol(symbol: str, why: str) -> CallError:
    return CallError(
        f"the symbol {symbol!r} {why}",
        where="--user-defined-symbol, --control-symbol",
        remedy="give each symbol once, such as '<|im_start|>'",
    )


def _explained(message: str, vocab_size: int, where: str) -> Exception:
    """sentencepiece's message (file and line of its C++ source first) in the user's words."""
    if found := re.search(r"Vocabulary size too high .* value <= (\d+)", message):
        return DataError(
            f"the corpus is too small for a vocabulary of {vocab_size} pieces",
            where=where,
            remedy=f"set the vocabulary size to {found[1]} or less, or train on more text",
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return ConfigError(
            f"a vocabulary of {vocab_size} pieces has no room for bytes and characters",
            where=where,
            remedy=f"set the vocabulary size above {found[1]}, or lower the character coverage",
        )
    return DataError(
        f"sentencepiece could not train: {message.strip()}",
        where=where,
        remedy="check that the files hold text",
    )


def _write(out: Path, model: bytes) -> None:
    """The model comes last: a folder that has it has everything."""
    import sentencepiece

    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.model").unlink(missing_ok=True)
    write_transformers_files(sentencepiece.SentencePieceProcessor(model_proto=model), out)
    partial = out / "tokenizer.model.partial"
    partial.write_bytes(model)
    os.replace(partial, out / "tokenizer.model")


def _cores() -> int:
    return len(os.sched_getaffinity(0))
