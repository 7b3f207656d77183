from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.commit import manifest, names
from ds_llama.commit.verify import Problem, verify
from ds_llama.errors import CheckpointError


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


SPOILS: list[tuple[str, Callable[[Path], object], str]] = [
    (
        "missing rank file",
        lambda f: (f / "rank_1.pt").unlink(),
        "rank_1.pt (written by rank 1) is missing",
    ),
    (
        "truncated",
        lambda f: (f / "rank_1.pt").write_bytes(b"abc"),
        "rank_1.pt (written by rank 1) has 3 bytes, the manifest says",
    ),
    (
        "bit flipped",
        lambda f: _flip(f / "rank_0.pt"),
        "rank_0.pt (written by rank 0) has other content than when it was saved",
    ),
    ("extra", lambda f: (f / "rank_2.pt").write_text(""), "rank_2.pt is not in the manifest"),
    ("no manifest", lambda f: (f / "MANIFEST.json").unlink(), "MANIFEST.json is missing"),
    (
        "manifest flipped",
        lambda f: (f / "MANIFEST.json").write_text(
            (f / "MANIFEST.json").read_text().replace('"step": 5', '"step": 6')
        ),
        "MANIFEST.json does not match its own hash",
    ),
    (
        "manifest truncated",
        lambda f: (f / "MANIFEST.json").write_text("{"),
        "MANIFEST.json is damaged",
    ),
    (
        "link",
        lambda f: ((f / "rank_1.pt").unlink(), (f / "rank_1.pt").symlink_to(f / "rank_0.pt")),
        "rank_1.pt (written by rank 1) is not a regular file",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), [s[1:] for s in SPOILS], ids=[s[0] for s in SPOILS])
def test_each_damage_is_named_with_file_and_rank(
    commit, spoil: Callable[[Path], object], message: str
) -> None:
    folder = commit(5)
    spoil(folder)
    assert any(str(problem).startswith(message) for problem in verify(folder))


def test_flipped_bits_need_the_hashes(commit) -> None:
    folder = commit(5)
    _flip(folder / "rank_0.pt")
    assert verify(folder, hashes=False) == []
    parts = [verify(folder, part=(index, 3)) for index in range(3)]
    assert [len(problems) for problems in parts] == [1, 0, 0]


def test_manifest_of_another_run(commit, tmp_path: Path) -> None:
    mine, other = commit(5), commit(6, root=tmp_path / "other")
    shutil.copytree(other, mine.parent / other.name)
    (problem,) = verify(mine.parent / other.name)
    assert f"this folder is of run {names.run_id(mine.parent)}" in problem.what
    assert problem.file == "MANIFEST.json"


def test_a_step_under_another_name(commit) -> None:
    folder = commit(5)
    folder.rename(folder.with_name("step-00000050"))
    problems = verify(folder.with_name("step-00000050"))
    assert [str(p) for p in problems] == ["MANIFEST.json is of step 5, the folder says 50"]


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", ""])
def test_a_manifest_cannot_name_files_outside(tmp_path: Path, path: str) -> None:
    entry = manifest.Entry(path=path, size=1, sha256="", rank=0)
    meta = {"run_id": "r", "step": 1, "world_size": 1, "stage": 0}
    manifest.write(tmp_path, "step-00000001", [entry], meta)
    with pytest.raises(CheckpointError, match="names a file outside the checkpoint"):
        manifest.read(tmp_path)


def test_a_later_format_is_not_guessed_at(commit) -> None:
    folder = commit(5)
    content = json.loads((folder / "MANIFEST.json").read_text())
    (folder / "MANIFEST.json").write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(CheckpointError, match="has format 2, this version reads up to 1") as caught:
        manifest.read(folder)
    assert "checkpoint list" in caught.value.remedy


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_json_for_a_manifest_is_a_checkpoint_error(content: object) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "MANIFEST.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError):
            manifest.read(Path(name))


def test_problems_print_and_serialise() -> None:
    problem = Problem("a.pt", 3, "is missing")
    assert str(problem) == "a.pt (written by rank 3) is missing"
    assert problem.to_dict() == {"file": "a.pt", "rank": 3, "what": "is missing"}


@pytest.mark.parametrize("reader", ["export", "inference"])
def test_nothing_unpickles_a_shard_with_a_flipped_bit(reader: str, commit, tmp_path: Path) -> None:
    """Sizes are right, so that only the hashes tell: the gate of both offline readers."""
    from ds_llama.checkpoint.offline import export_step
    from ds_llama.cli.loading import _read_step

    checkpoint = commit(5)
    _flip(checkpoint / "rank_0.pt")
    read = {"export": lambda: export_step(checkpoint, tmp_path / "out")}
    read["inference"] = lambda: _read_step(checkpoint, ema=False)
    with pytest.raises(CheckpointError, match=r"not whole: rank_0\.pt .* has other content than"):
        read[reader]()
