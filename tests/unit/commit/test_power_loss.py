"""The short form of `tests.campaigns.power_loss`; it records in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.campaigns.disk_model import Disk
from tests.campaigns.recorded import Op

ROOT = Path(__file__).parents[3]


def test_a_power_loss_at_any_call_loses_no_committed_checkpoint() -> None:
    command = [sys.executable, "-m", "tests.campaigns.power_loss", "--short"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) states, 0 lost", done.stdout)
    assert found, done.stdout
    assert int(found[1]) > 1000, done.stdout
    assert "saves without fsync of folders" in done.stdout


def _states(*ops: Op) -> set[tuple[tuple[str, bytes | None], ...]]:
    disk = Disk()
    for op in ops:
        disk.apply(op)
    return {state for state, _ in disk.states(1 << 10, None)}  # type: ignore[arg-type]


def test_what_a_disk_may_hold() -> None:
    """The model by itself: content and names are certain only once they are synced."""
    new, written = Op("open", "a"), Op("write", "a", data=b"12345678")
    assert _states(new) == {(), (("a", b""),)}
    torn = {b"", b"12", b"1234", b"123456", b"1234567", bytes(8), b"12345678"}
    assert _states(new, written) == {()} | {(("a", content),) for content in torn}
    assert _states(new, written, Op("sync", "a")) == {(), (("a", b"12345678"),)}
    kept = (new, written, Op("sync", "a"), Op("sync_folder", ""))
    assert _states(*kept) == {(("a", b"12345678"),)}
    assert _states(*kept, Op("rename", "a", "b")) == {(("a", b"12345678"),), (("b", b"12345678"),)}
    assert _states(*kept, Op("rename", "a", "b"), Op("sync_folder", "")) == {(("b", b"12345678"),)}


def test_renames_may_be_reordered_and_a_folder_is_moved_with_what_is_in_it() -> None:
    made = (Op("mkdir", "d"), Op("open", "d/a"), Op("sync_folder", "d"), Op("sync_folder", ""))
    assert _states(*made) == {(("d", None), ("d/a", b""))}
    states = _states(*made, Op("rename", "d", "e"), Op("mkdir", "f"))
    before, after = (("d", None), ("d/a", b"")), (("e", None), ("e/a", b""))
    assert {s for s in states if ("f", None) not in s} == {before, after}
    with_f = {tuple(x for x in s if x != ("f", None)) for s in states if ("f", None) in s}
    assert with_f == {before, after}
