"""What the table of commands does with arguments before typer sees them."""

from __future__ import annotations

import pytest

from ds_llama.cli import commands


@pytest.mark.parametrize(
    ("given", "completed"),
    [
        (["--sabotage"], ["--sabotage=all"]),
        (["--sabotage", "--nproc", "2"], ["--sabotage=all", "--nproc", "2"]),
        (["--nproc", "2", "--sabotage"], ["--nproc", "2", "--sabotage=all"]),
        (["--sabotage", "rotary"], ["--sabotage", "rotary"]),
        (["--sabotage=data", "--json"], ["--sabotage=data", "--json"]),
        ([], []),
    ],
)
def test_a_bare_sabotage_means_all_kinds(given: list[str], completed: list[str]) -> None:
    assert commands.complete(commands.find("selftest"), given) == completed


def test_other_commands_are_given_what_was_written() -> None:
    words = ["run.json", "--nproc", "--sabotage"]
    assert commands.complete(commands.find("train"), words) == words
