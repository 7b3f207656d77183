"""`ds-llama selftest` on the real launcher: a handful of cells, and each sabotage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Workspace


@pytest.fixture
def space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    return Workspace(tmp_path)


def test_a_handful_of_cells(space: Workspace) -> None:
    """Some of each kind within; what this processor cannot do is said; nothing is left behind."""
    only = ("fp32-stage0-none-kept", "bf16-stage3-all-rec*4", "fp16-stage1-none-kept-*1")
    words = [word for pattern in only for word in ("--only", pattern)]
    found = json.loads(space.run("selftest", "--nproc", "2", "--json", *words).stdout)
    rows = {row["cell"]: row for row in found["cells"]}
    assert list(rows) == [
        "fp32-stage0-none-kept-accumulation1",
        "fp32-stage0-none-kept-accumulation4",
        "bf16-stage3-all-recompute-accumulation4",
        "fp16-stage1-none-kept-accumulation1",
    ]
    assert (found["passed"], found["sabotage"], found["world_size"]) == (True, None, 2)
    assert {"ds_llama", "deepspeed", "torch", "python"} <= found["versions"].keys()
    half = rows.pop("fp16-stage1-none-kept-accumulation1")
    assert half["verdict"] == "ok" or "has no fast fp16" in half["reason"]
    for row in rows.values():
        assert row["verdict"] == "ok"
        assert row["gaps"].keys() == row["limits"].keys()
        assert all(gap <= row["limits"][name] for name, gap in row["gaps"].items())
    # the order of sums differs: a difference of exactly nothing would be a comparison with itself
    assert any(any(row["gaps"].values()) for row in rows.values())
    left = [path.name for path in (space.folder / "temporary").iterdir()]
    assert not [name for name in left if name.startswith("ds-llama")]


@pytest.mark.parametrize("sabotage", ["gradient", "rotary", "data"])
def test_a_sabotage_is_seen_by_every_cell(space: Workspace, sabotage: str) -> None:
    only = ("fp32-stage0-none-kept-*1", "bf16-stage1-none-kept-*1", "fp32-stage3-none-rec*1")
    words = [word for pattern in only for word in ("--only", pattern)]
    out = space.run("selftest", "--sabotage", sabotage, *words, code=1).stdout
    assert "sabotaged: the last rank" in " ".join(out.split("cell ")[0].split())
    assert out.count(" beyond ") == 3
    text = " ".join(out.split())
    assert "3 of 3 cells ran to the end" in text
    assert text.endswith("; 3 cells beyond.")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("--only", "stage9"), "error: no cell's name has 'stage9' in it"),
        (("--sabotage", "nothing"), "error: Invalid value for '--sabotage'"),
        (("--nproc", "0"), "error: Invalid value for '--nproc'"),
    ],
)
def test_a_wrong_call(space: Workspace, words: tuple[str, ...], error: str) -> None:
    assert error in space.run("selftest", *words, code=2).stderr
