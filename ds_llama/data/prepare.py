"""Tokenize a corpus into a training and a validation shard.

    OUT/train.bin train.idx validation.bin validation.idx manifest.json

The bytes depend on the inputs alone, not on the number of workers. Everything is written under
OUT/.preparing and moved when it is whole, the manifest last: a prepare that was killed leaves no
half file under a final name, and no manifest that vouches for it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ds_llama.data.encoding import Policy, Splits, encode_all
from ds_llama.data.fingerprint import fingerprint, read_json, write_json
from ds_llama.data.shards import ShardWriter
from ds_llama.data.sources import Options, find_files, read
from ds_llama.data.tokenizer import Tokenizer, load_tokenizer
from ds_llama.errors import CallError, DataError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_BATCH_CHARACTERS = 1 << 19
_SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class Progress:
    """`bytes_done` counts what has been read, `documents` and `tokens` what has been written."""

    bytes_done: int
    bytes_total: int
    documents: int
    tokens: int


@dataclass(frozen=True)
class Prepared:
    """`skipped`: the folder already held the result of the same inputs, options and tokenizer."""

    folder: Path
    manifest: dict[str, Any]
    skipped: bool


@dataclass
class _Tally:
    files: int = 0
    bytes: int = 0
    documents: int = 0
    empty: int = 0
    bad: int = 0
    first_bad: list[str] = field(default_factory=list)


def prepare(
    sources: Iterable[str | os.PathLike[str]],
    tokenizer: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    validation_fraction: float = 0.01,
    workers: int = 1,
    bos: bool = True,
    eos: bool = True,
    options: Options | None = None,
    force: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Prepared:
    """Tokenize files and folders into OUT; each document becomes `[BOS] ids [EOS]`.

    A document goes to validation by a hash of its text. Records that cannot be read are counted and
    the first shown in the manifest. Nothing is done when OUT already holds the result of the same
    call, unless `force`. Raises `DataError` for a corpus without text or a damaged file.
    """
    if not 0 <= validation_fraction < 1:
        raise CallError(
            f"a validation fraction of {validation_fraction} is not in 0 <= fraction < 1",
            where="--validation",
            remedy="give the share of documents to hold out, such as 0.01",
        )
    options, folder = options or Options(), Path(out)
    loaded, files = load_tokenizer(tokenizer), find_files(sources, options)
    policy = Policy(str(loaded.path), bos, eos, validation_fraction)
    # An empty text, so that a tokenizer without BOS is found before hours of work.
    loaded.encode("", bos=bos, eos=eos)
    asked = _asked(loaded, policy, options)
    mark = fingerprint(files, asked)
    folder.mkdir(parents=True, exist_ok=True)
    with _staging(folder) as staging:
        manifest = read_json(folder / MANIFEST)
        if not force and manifest.get("fingerprint") == mark and _is_whole(folder, manifest):
            return Prepared(folder, manifest, skipped=True)
        tally, total = _Tally(), sum(path.stat().st_size for path in files)
        writers = _writers(staging, loaded.vocab_size, validation_fraction)
        with ExitStack() as stack:
            for writer in writers.values():
                stack.enter_context(writer)
            for splits in encode_all(_batches(files, options, tally), policy, workers):
                _append(writers, splits)
                if progress:
                    written = [w.num_documents for w in writers.values()]
                    tokens = sum(w.num_tokens for w in writers.values())
                    progress(Progress(tally.bytes, total, sum(written), tokens))
            _require_text(tally, files)
        manifest = _manifest(mark, asked, tally, writers, staging)
        _publish(staging, folder, manifest)
    return Prepared(folder, manifest, skipped=False)


def _asked(tokenizer: Tokenizer, policy: Policy, options: Options) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "tokenizer": {
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id if policy.bos else None,
            "eos_id": tokenizer.eos_id if policy.eos else None,
        },
        "validation_fraction": policy.validation_fraction,
        **options.asked(),
    }


def _writers(staging: Path, vocab_size: int, fraction: float) -> dict[str, ShardWriter]:
    names = ["train", "validation"] if fraction else ["train"]
    return {name: ShardWriter(staging / name, vocab_size=vocab_size) for name in names}


def _append(writers: dict[str, ShardWriter], splits: Splits) -> None:
    for name, writer in writers.items():
        encoded = splits._asdict()[name]
        writer.add_many(encoded.ids, encoded.sizes)


def _batches(files: list[Path], options: Options, tally: _Tally) -> Iterator[list[str]]:
    """Texts in batches of about half a million characters; what is passed over is tallied."""
    batch: list[str] = []
    characters = finished = 0
    for path in files:
        tally.files += 1
        for record in read(path, options):
            tally.bytes = finished + record.position
            if record.problem is not None:
                tally.bad += 1
                if len(tally.first_bad) < _SHOWN_PROBLEMS:
                    tally.first_bad.append(f"{record.where}: {record.problem}")
            elif not record.text:
                tally.empty += 1
            else:
                tally.documents += 1
                batch.append(record.text)
                characters += len(record.text)
            if characters >= _BATCH_CHARACTERS:
                yield batch
                batch, characters = [], 0
        finished += path.stat().st_size
        tally.bytes = finished
    if batch:
        yield batch


def _require_text(tally: _Tally, files: list[Path]) -> None:
    if tally.documents:
        return
    shown = f"; the first bad record: {tally.first_bad[0]}" if tally.first_bad else ""
    raise DataError(
        f"the corpus has no text: {tally.files} files, {tally.empty} empty documents, "
        f"{tally.bad} bad records{shown}",
        where=str(files[0]),
        remedy="name files with text; for JSON lines, --text-field says which key holds it",
    )


def _manifest(
    mark: str,
    asked: dict[str, Any],
    tally: _Tally,
    writers: dict[str, ShardWriter],
    staging: Path,
) -> dict[str, Any]:
    shards = {
        name: {
            "documents": writer.num_documents,
            "tokens": writer.num_tokens,
            "files": {
                file: {"bytes": (staging / file).stat().st_size, "sha256": digest}
                for file, digest in writer.sha256.items()
            },
        }
        for name, writer in writers.items()
    }
    return {**asked, "fingerprint": mark, "input": asdict(tally), "shards": shards}


def _is_whole(folder: Path, manifest: dict[str, Any]) -> bool:
    """Each file that the manifest names is there with its size."""
    try:
        named = [item for shard in manifest["shards"].values() for item in shard["files"].items()]
        return all((folder / name).stat().st_size == entry["bytes"] for name, entry in named)
    except (KeyError, TypeError, AttributeError, OSError):
        return False


def _publish(staging: Path, folder: Path, manifest: dict[str, Any]) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)
    for name in ("train", "validation"):
        for suffix in (
            ".idx",
            ".bin",
        ):  # an old index must not describe a new .bin, so it goes first
            (folder / (name + suffix)).unlink(missing_ok=True)
    for file in sorted(staging.iterdir()):  # .bin before .idx, which makes the shard readable
        os.replace(file, folder / file.name)
    write_json(folder / MANIFEST, manifest)


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """An empty folder inside OUT, for this process alone; what a killed run left there is removed.

    The lock is the kernel's and ends with the process, however it ends.
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
        staging = folder / ".preparing"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
