"""What reading a corpus holds at its peak, by kind of source and size.

    python -m tests.campaigns.sources_memory [--mb 100 800] [--kind a.parquet]

A generated corpus of each size is written as each kind of source and read in a fresh process, whose
peak of resident memory beyond what it had after its imports is taken. The slope is what a byte more
of text costs. The last row keeps every record on purpose: it has to be over the limit. Exits with 1
if a source is over, or the last is not.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet  # noqa: F401  imported before memory is looked at
import zstandard  # noqa: F401

from ds_llama.data.sources import Options, read
from tests.unit.data.corpora import KINDS, Kind

ROOT = Path(__file__).parents[2]
# Bytes held for each byte more of text, and what an allocator may round up to.
MOST, ROUNDED_BYTES = 0.01, 4_000_000


def peak_kib() -> int:
    """Of this process alone: getrusage's begins at that of the process which started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def child(path: Path, kind: Kind, keep: bool) -> None:
    before = peak_kib()
    records = read(path, Options(documents=kind[2]))
    kept = list(records) if keep else []
    count = len(kept) + sum(1 for _ in records)
    print(count, (peak_kib() - before) << 10)


def held(path: Path, name: str, keep: bool) -> int:
    command = [sys.executable, "-m", "tests.campaigns.sources_memory", "--child", str(path), name]
    done = subprocess.run(
        [*command, *(["--keep"] if keep else [])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[1])


def row(kind: Kind, sizes: list[int], folder: Path, keep: bool = False) -> bool:
    """Print a line; whether it is below the limit."""
    name, write, _ = kind
    found = []
    for size in sizes:
        write(folder / name, size)
        found.append(held(folder / name, name, keep))
        (folder / name).unlink()
    more, held_more = sizes[-1] - sizes[0], found[-1] - found[0]
    peaks = "".join(f"{peak / 1e6:>11.1f}" for peak in found)
    print(f"{name + (' (kept)' if keep else ''):<20}{peaks}{held_more / more:>11.4f}", flush=True)
    return held_more < MOST * more + ROUNDED_BYTES


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, nargs="+", default=[100, 800])
    parser.add_argument("--kind", choices=[kind[0] for kind in KINDS])
    parser.add_argument("--child", nargs=2)
    parser.add_argument("--keep", action="store_true")
    asked = parser.parse_args(arguments)
    if asked.child:
        [kind] = (kind for kind in KINDS if kind[0] == asked.child[1])
        child(Path(asked.child[0]), kind, asked.keep)
        return 0
    kinds = [kind for kind in KINDS if asked.kind in (None, kind[0])]
    sizes = [mb * 1_000_000 for mb in asked.mb]
    print(f"{'peak, MB, at':<20}" + "".join(f"{mb:>8} MB" for mb in asked.mb) + "      slope")
    with tempfile.TemporaryDirectory() as folder:
        flat = [row(kind, sizes, Path(folder)) for kind in kinds]
        return 0 if all(flat) and not row(kinds[-1], sizes, Path(folder), keep=True) else 1


if __name__ == "__main__":
    sys.exit(main())
