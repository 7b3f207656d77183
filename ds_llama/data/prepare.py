"""Tokenize a corpus into a training and a validation shard.

    OUT/train.bin train.idx validation.bin validation.idx rejects.jsonl manifest.json

The bytes depend on the inputs alone, not on the number of workers, nor on how often it was killed.
Everything is written under OUT/.preparing (`output.py`) and moved when it is whole, the manifest
last: a prepare that was killed leaves no half file under a final name, and no manifest that vouches
for it. The same call goes on where it was.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ds_llama.data.encoding import Policy, encode_all, encoder_of
from ds_llama.data.fingerprint import fingerprint, read_json, sync_folder, write_json
from ds_llama.data.limit import Limit, parse_limit
from ds_llama.data.output import JOURNAL, MASK, REJECTS, Output, Shape, Tally, taken_up
from ds_llama.data.reading import Choice, batches
from ds_llama.data.sources import Options, find_files
from ds_llama.data.tokenizer import Tokenizer, load_tokenizer
from ds_llama.errors import CallError, DataError

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
_STAGING = ".preparing"
_SHARDS = [split + mask for split in ("train", "validation") for mask in ("", MASK)]
# An old index must not describe a new .bin, so it goes first, and the new one comes last.
_FILES = [REJECTS, *(shard + suffix for shard in _SHARDS for suffix in (".bin", ".idx"))]


@dataclass(frozen=True)
class Progress:
    """Of what has been written. `bytes_before` had been done when this process took it up."""

    bytes_done: int
    bytes_total: int
    documents: int
    tokens: int
    bytes_before: int = 0


@dataclass(frozen=True)
class Prepared:
    """`skipped`: the folder already held the result of the same inputs, options and tokenizer."""

    folder: Path
    manifest: dict[str, Any]
    skipped: bool


def prepare(
    sources: Iterable[str | os.PathLike[str]],
    tokenizer: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    validation_fraction: float = 0.01,
    workers: int = 1,
    bos: bool = True,
    eos: bool = True,
    format: str = "text",
    chat_template: str | None = None,
    deduplicate: bool = False,
    max_document_bytes: int | None = None,
    max_bad: str | int | None = None,
    options: Options | None = None,
    force: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Prepared:
    """Tokenize files and folders into OUT; each document becomes `[BOS] ids [EOS]`.

    With a `format` of `data/chat` the documents are JSON records, and a mask of what is learnt is
    written beside each shard (`masks.py`); `chat_template` is a shipped one's name or a file.
    A document goes to validation by a hash of its text. With `deduplicate` the first of equal texts
    is kept. Records that are no documents (unreadable, empty, longer than `max_document_bytes`) are
    kept in rejects.jsonl and counted in the manifest. What the same call has begun is gone on with;
    nothing is done when OUT already holds its result, unless `force`. Raises `DataError` for a
    corpus without text, more than `max_bad` bad records (a number, or a share: "1%"), or a damaged
    file.
    """
    policy = Policy(os.fspath(tokenizer), bos, eos, validation_fraction, format, chat_template)
    _check(policy)
    options, folder, limit = options or Options(), Path(out), parse_limit(max_bad)
    loaded, files = load_tokenizer(tokenizer), find_files(sources, options)
    choice, encoder = Choice(deduplicate, max_document_bytes), encoder_of(policy)
    options = replace(options, objects=policy.mask)
    asked = _asked(loaded, policy, choice, options) | encoder.asked
    mark = fingerprint(files, asked)
    folder.mkdir(parents=True, exist_ok=True)
    with _staging(folder) as staging:
        manifest = read_json(folder / MANIFEST)
        if not force and manifest.get("fingerprint") == mark and _is_whole(folder, manifest):
            return Prepared(folder, manifest, skipped=True)
        shape = Shape(_splits(policy), encoder.vocab_size, policy.mask)
        total = sum(path.stat().st_size for path in files)
        with taken_up(staging, mark, shape, total) as output:
            read = batches(files, options, choice, output.position, output.seen())
            for batch, encoded in encode_all(read, policy, workers):
                output.append(batch, encoded)
                _judge(output, limit, ended=False)
                if progress:
                    progress(_progress(output))
            _judge(output, limit, ended=True)
            _require_text(output, files)
            output.close()
            manifest = {"fingerprint": mark, **asked, **_results(output, staging)}
        write_json(staging / MANIFEST, manifest)
        _publish(staging, folder)
    return Prepared(folder, manifest, skipped=False)


def _check(policy: Policy) -> None:
    if not 0 <= policy.validation_fraction < 1:
        raise CallError(
            f"a validation fraction of {policy.validation_fraction} is not in 0 <= fraction < 1",
            where="--validation",
            remedy="give the share of documents to hold out, such as 0.01",
        )
    if policy.template and not policy.mask:
        raise CallError(
            "a chat template has nothing to say of plain text",
            where="--chat-template",
            remedy="leave it out, or name the records' --format",
        )


def share_done(out: str | os.PathLike[str]) -> float | None:
    """How much of a prepare that came to no end is done; None when nothing is to be gone on with.

    Of the input's bytes, 0 to 1.
    """
    journal = read_json(Path(out) / _STAGING / JOURNAL)
    total = journal.get("bytes_total")
    return journal["position"][2] / total if total else None


def _asked(
    tokenizer: Tokenizer, policy: Policy, choice: Choice, options: Options
) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "format": policy.format,
        "tokenizer": {
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id if policy.bos else None,
            "eos_id": tokenizer.eos_id if policy.eos else None,
        },
        "validation_fraction": policy.validation_fraction,
        **options.asked(),
        **asdict(choice),
    }


def _splits(policy: Policy) -> tuple[str, ...]:
    return ("train", "validation") if policy.validation_fraction else ("train",)


def _progress(output: Output) -> Progress:
    done, before = output.position.bytes, output.taken_up_at.bytes
    return Progress(done, output.bytes_total, output.tally.documents, output.tokens, before)


def _judge(output: Output, limit: Limit | None, *, ended: bool) -> None:
    tally = output.tally
    if limit is None or not limit.is_passed(tally.bad_records, tally.records, ended=ended):
        return
    output.save()
    raise DataError(
        f"{tally.bad_records} of {tally.records} records are bad ({_kinds(tally)}), more than "
        f"{limit.text}; the first: {tally.first_bad[0]}",
        where=str(output.rejects.path),
        remedy="that file holds them: mend them, or go on with a larger --max-bad",
    )


def _kinds(tally: Tally) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(tally.bad.items()))


def _require_text(output: Output, files: list[Path]) -> None:
    tally = output.tally
    if tally.documents:
        return
    shown = f"; the first bad record: {tally.first_bad[0]}" if tally.first_bad else ""
    raise DataError(
        f"the corpus has no text: {tally.files} files, {tally.bad_records} bad records"
        f"{f' ({_kinds(tally)})' if tally.bad else ''}{shown}",
        where=str(files[0]),
        remedy="name files with text; for JSON lines, --text-field says which key holds it",
    )


def _results(output: Output, staging: Path) -> dict[str, Any]:
    def entry(name: str, digest: str) -> dict[str, Any]:
        return {"bytes": (staging / name).stat().st_size, "sha256": digest}

    shards: dict[str, dict[str, Any]] = {}
    for name, writer in output.writers.items():
        counts = {"documents": writer.num_documents, "tokens": writer.num_tokens, "files": {}}
        files = shards.setdefault(name.removesuffix(MASK), counts)["files"]
        files |= {file: entry(file, digest) for file, digest in writer.sha256.items()}
    rejects = {REJECTS: entry(REJECTS, output.rejects.hash.hexdigest())}
    return {"input": asdict(output.tally), "shards": shards, "rejects": {"files": rejects}}


def _is_whole(folder: Path, manifest: dict[str, Any]) -> bool:
    """Each file that the manifest names is there with its size."""
    try:
        named = _files_of(manifest).items()
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in named)
    except (KeyError, TypeError, AttributeError, OSError):
        return False


def _files_of(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    parts = [*manifest["shards"].values(), manifest["rejects"]]
    return {name: entry for part in parts for name, entry in part["files"].items()}


def _publish(staging: Path, folder: Path) -> None:
    """Move a whole result out of `staging`; when it was begun before, what is left of it."""
    manifest = read_json(staging / MANIFEST)
    (folder / MANIFEST).unlink(missing_ok=True)
    sync_folder(folder)
    named = _files_of(manifest)
    for name in reversed(_FILES):
        if name not in named or (staging / name).exists():
            (folder / name).unlink(missing_ok=True)
    for name in _FILES:
        if (staging / name).exists():
            os.replace(staging / name, folder / name)
    sync_folder(folder)
    os.replace(staging / MANIFEST, folder / MANIFEST)
    sync_folder(folder)


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """The folder inside OUT to work in, for this process alone.

    It stays behind with what can be gone on with, if anything ends this before it is published. The
    lock is the kernel's and ends with the process, however it ends.
    """
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                "another prepare is writing here",
                where=str(folder),
                remedy="wait for it to end, or choose another --out",
            ) from error
        staging = folder / _STAGING
        if (staging / MANIFEST).exists():
            _publish(staging, folder)
            shutil.rmtree(staging)
        staging.mkdir(exist_ok=True)
        try:
            yield staging
        except BaseException:
            if not (staging / JOURNAL).exists():
                shutil.rmtree(staging, ignore_errors=True)
            raise
        shutil.rmtree(staging, ignore_errors=True)
