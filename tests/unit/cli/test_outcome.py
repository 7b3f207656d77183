"""What an error of a rank is said to mean."""

from __future__ import annotations

import pytest

from ds_llama.cli.outcome import describe


def test_a_rank_that_has_lost_another_is_not_the_one_that_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost = RuntimeError("Connection closed by peer [10.0.0.7]:4242")
    monkeypatch.setenv("RANK", "3")
    text, code = describe(lost)
    assert text.splitlines() == [
        "error: another rank has gone away (RuntimeError: Connection closed by peer "
        "[10.0.0.7]:4242)",
        "where: rank 3, unknown",
        "remedy: see which rank ended first, and why: its launcher names it with its exit code",
    ]
    assert code == 1
    monkeypatch.delenv("RANK")
    assert describe(lost)[0].startswith("error: ds-llama failed in a way it does not know")
