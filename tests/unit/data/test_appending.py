from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds_llama.data.appending import AppendedFile


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kept=st.lists(st.binary(max_size=40), max_size=6),
    lost=st.binary(max_size=60),
    later=st.binary(max_size=60),
    head=st.sampled_from([0, 5]),
)
def test_what_was_saved_is_gone_on_with(
    tmp_path: Path, kept: list[bytes], lost: bytes, later: bytes, head: int
) -> None:
    path = tmp_path / "x"
    first = AppendedFile(path, head=head)
    for raw in kept:
        first.write(raw)
    state = first.save()
    first.write(lost)
    first.leave()
    second = AppendedFile(path, state, head=head)
    second.write(later)
    whole = b"".join([*kept, later])
    assert (second.bytes, second.hash.hexdigest()) == (
        len(whole),
        hashlib.sha256(whole).hexdigest(),
    )
    second.close(b"HEAD!"[:head])
    assert path.read_bytes() == b"HEAD!"[:head] + whole


@pytest.mark.parametrize("change", [b"abcdeX", b"abcde", b""])
def test_other_bytes_are_not_gone_on_with(tmp_path: Path, change: bytes) -> None:
    file = AppendedFile(tmp_path / "x")
    file.write(b"abcdef")
    state = file.save()
    file.leave()
    (tmp_path / "x").write_bytes(change)
    with pytest.raises(ValueError, match="is not what it was"):
        AppendedFile(tmp_path / "x", state)
    assert (tmp_path / "x").read_bytes() == change


def test_nothing_there_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        AppendedFile(tmp_path / "x", {"bytes": 0, "sha256": ""})
    assert not (tmp_path / "x").exists()
