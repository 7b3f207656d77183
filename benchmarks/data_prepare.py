"""How fast `ds-llama data prepare` is, beside sentencepiece alone and Hugging Face `datasets.map`.

    python benchmarks/data_prepare.py [--mib 64] [--workers 0] [--trials 3] [--vocab-size 32000]

All three encode the same documents with the same tokenizer by the same number of processes, in
turns. The corpus is made on the spot, the same each time where the same packages are installed:
Python sources of torch and transformers cut into documents, and made-up prose in several scripts.

    raw       the texts are in memory and the models loaded; SentencePieceProcessor.encode on lists
              of texts, each process its share: nothing is read or written, ids are thrown away
    prepare   the command, from its start to its end: JSON lines read, shards, index, hashes written
    datasets  a program, from its start to its end: load_dataset("json"), map(batched=True,
              num_proc=…) with that tokenizer; `map` is the seconds of map alone

Wall seconds are the median of the trials, MB/s those of the texts in UTF-8, CPU seconds those of
all processes together, and "of raw" is prepare's (or datasets') MB/s over raw's.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from ds_llama.data.tokenizer import train_tokenizer

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results" / "data_prepare.json"
KINDS = ("raw", "prepare", "datasets")
_MIB = 1 << 20
_ALPHABETS = (
    *("abcdefghijklmnopqrstuvwxyz", "абвгдежзиклмнопрстуфхцчшщыэюя", "αβγδεζηθικλμνξοπρστυφχψω"),
    *("的一是不了在人有我他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学"),
)
DATASETS = """
import sys, time
from datasets import disable_progress_bars, load_dataset
from sentencepiece import SentencePieceProcessor
disable_progress_bars()
corpus, model, workers, cache = sys.argv[1:]
processor = None
def encode(rows):
    global processor
    if processor is None:
        processor = SentencePieceProcessor(model_file=model)
    return {"input_ids": processor.encode(rows["text"], add_bos=True, add_eos=True, num_threads=1)}
loaded = load_dataset("json", data_files=corpus, split="train", cache_dir=cache)
start = time.perf_counter()
done = loaded.map(encode, batched=True, num_proc=int(workers), remove_columns=loaded.column_names)
print(time.perf_counter() - start, sum(map(len, done[:100]["input_ids"])))
"""


def texts_of(mib: float) -> list[str]:
    """Documents of some kilobytes, about `mib` MiB of UTF-8."""
    draw, found, size = random.Random(0), [], 0
    for text in _alternating(draw):
        found.append(text)
        size += len(text.encode("utf-8", "surrogatepass"))
        if size >= mib * _MIB:
            break
    return found


def _alternating(draw: random.Random) -> Iterator[str]:
    """Two documents of code, one of prose, as long as anybody asks."""
    while True:
        for path in _sources():
            text = path.read_text("utf-8", errors="replace")
            for start in range(0, len(text), 6000):
                yield text[start : start + 6000]
                if draw.random() < 0.5:
                    yield _prose(draw)


def _sources() -> list[Path]:
    folders = [Path(str(find_spec(name).origin)).parent for name in ("torch", "transformers")]
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def _prose(draw: random.Random) -> str:
    letters = draw.choice(_ALPHABETS)
    words = ["".join(draw.choices(letters, k=draw.randrange(1, 11))) for _ in range(200)]
    return " ".join(draw.choices(words, k=draw.randrange(20, 800))) + ".\n"


def _encode_share(model: str, texts: list[str], ready: Any, times: Any) -> None:
    from sentencepiece import SentencePieceProcessor

    processor, rest = SentencePieceProcessor(model_file=model), iter(texts)
    ready.wait()
    start, cpu = time.perf_counter(), time.process_time()
    while part := list(islice(rest, 100)):
        processor.encode(part, add_bos=True, add_eos=True, num_threads=1)
    times.put((time.perf_counter() - start, time.process_time() - cpu))


def raw(texts: list[str], model: Path, workers: int) -> Row:
    """Sentencepiece alone; the wall seconds of the slowest process."""
    context = multiprocessing.get_context("spawn")
    ready, times = context.Barrier(workers), context.Queue()
    processes = [
        context.Process(
            target=_encode_share, args=(str(model), texts[i::workers], ready, times), daemon=True
        )
        for i in range(workers)
    ]
    for process in processes:
        process.start()
    found = [times.get(timeout=3600) for _ in processes]
    for process in processes:
        process.join()
    return {"wall_s": max(wall for wall, _ in found), "cpu_s": sum(cpu for _, cpu in found)}


def run(command: list[str]) -> tuple[Row, str]:
    """A program's wall and CPU seconds, those of its processes too, and what it printed."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said, complaint = process.stdout.read(), process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{command[:3]} ended with {process.returncode}: {complaint}")
    return {"wall_s": wall_s, "cpu_s": usage.ru_utime + usage.ru_stime}, said


def prepare(folder: Path, workers: int) -> Row:
    shutil.rmtree(folder / "shards", ignore_errors=True)
    command = [sys.executable, "-m", "ds_llama", "data", "prepare", str(folder / "corpus.jsonl")]
    command += ["--tokenizer", str(folder / "tokenizer"), "--out", str(folder / "shards")]
    row, said = run([*command, "--workers", str(workers), "--json"])
    return {**row, "tokens": sum(s["tokens"] for s in json.loads(said)["shards"].values())}


def datasets(folder: Path, workers: int) -> Row:
    cache = folder / "cache"
    words = [folder / "corpus.jsonl", folder / "tokenizer" / "tokenizer.model", workers, cache]
    row, said = run([sys.executable, "-c", DATASETS, *map(str, words)])
    shutil.rmtree(cache)
    return {**row, "map_s": float(said.split()[0])}


def table(rows: dict[str, list[Row]], megabytes: float) -> list[Row]:
    """One line a kind: medians over the trials."""
    found = []
    for kind, trials in rows.items():
        medians = {key: statistics.median(row[key] for row in trials) for key in trials[0]}
        walls = [row["wall_s"] for row in trials]
        line = {"kind": kind, **medians, "wall_s_all": walls}
        found.append({**line, "mb_per_s": megabytes / medians["wall_s"]})
    for line in found:
        line["of_raw"] = line["mb_per_s"] / found[0]["mb_per_s"]
        line["cpu_of_raw"] = line["cpu_s"] / found[0]["cpu_s"]
    return found


def show(lines: list[Row]) -> None:
    print(f"{'':10}{'wall s':>9}{'MB/s':>9}{'of raw':>9}{'CPU s':>9}{'of raw':>9}")
    for line in lines:
        print(
            f"{line['kind']:10}{line['wall_s']:>9.2f}{line['mb_per_s']:>9.2f}"
            f"{line['of_raw']:>9.2f}{line['cpu_s']:>9.2f}{line['cpu_of_raw']:>9.2f}"
            + (f"   map alone {line['map_s']:.2f} s" if "map_s" in line else "")
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mib", type=float, default=64)
    parser.add_argument("--workers", type=int, default=0, help="0: one per core")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--only", nargs="*", choices=KINDS, default=KINDS)
    parser.add_argument("--results", type=Path, default=None, help=f"such as {RESULTS.name}")
    options = parser.parse_args()
    workers = options.workers or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = texts_of(options.mib)
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text in texts)
        (folder / "corpus.jsonl").write_text("\n".join(lines), "utf-8", errors="replace")
        megabytes = sum(len(text.encode("utf-8", "replace")) for text in texts) / 1e6
        train_tokenizer(
            *([folder / "corpus.jsonl"], folder / "tokenizer"),
            vocab_size=options.vocab_size,
            sample_lines=20_000,
        )
        print(f"{len(texts)} documents, {megabytes:.1f} MB, {workers} processes", flush=True)
        measure = {
            "raw": lambda: raw(texts, folder / "tokenizer" / "tokenizer.model", workers),
            "prepare": lambda: prepare(folder, workers),
            "datasets": lambda: datasets(folder, workers),
        }
        rows: dict[str, list[Row]] = {kind: [] for kind in KINDS if kind in options.only}
        for _ in range(options.trials):
            for kind in rows:
                rows[kind].append(measure[kind]())
                print(f"  {kind}: {rows[kind][-1]['wall_s']:.2f} s", file=sys.stderr, flush=True)
    found = table(rows, megabytes)
    show(found)
    if options.results:
        versions = {p: version(p) for p in ("sentencepiece", "datasets", "numpy")}
        about = {"megabytes": megabytes, "documents": len(texts), "workers": workers}
        about |= {"vocab_size": options.vocab_size, "trials": options.trials}
        about |= {"versions": {**versions, "python": platform.python_version()}}
        about |= {"machine": platform.machine(), "command": " ".join(sys.argv)}
        options.results.write_text(json.dumps({**about, "rows": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
