"""README's plan of LLaMA-7B is what is printed; `python -m tests.docs.test_plan` renews it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import ds_llama as dl
from ds_llama.cli.plan_table import text

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
_BLOCK = re.compile(r"```text\n\$ ds-llama plan (.*?)\n(.*?)```", re.DOTALL)


def printed(words: str) -> str:
    """What the command prints on 80 columns."""
    file, *options = shlex.split(words)
    names = [name.removeprefix("--").replace("-", "_") for name in options[::2]]
    arguments = dict(zip(names, options[1::2], strict=True))
    world_size = int(arguments.pop("world_size"))
    return text(dl.plan(ROOT / file, world_size=world_size, **arguments), 80)


def renewed(readme: str) -> str:
    """The README with every plan in it as the command prints it now."""
    return _BLOCK.sub(
        lambda found: f"```text\n$ ds-llama plan {found[1]}\n{printed(found[1])}\n```", readme
    )


def numbers_and_words(text: str) -> tuple[list[float], str]:
    found = re.findall(r"\d[\d,]*(?:\.\d+)?", text)
    words = " ".join(re.sub(r"\d[\d,]*(?:\.\d+)?", "#", text).split())
    return [float(number.replace(",", "")) for number in found], words


def test_the_plan_in_the_readme_is_what_is_printed() -> None:
    """Word for word; the numbers to the 3 % that a plan claims, so that a better model of them
    does not have to touch the README."""
    readme = README.read_text()
    [(words, shown)] = _BLOCK.findall(readme)
    before, after = numbers_and_words(shown), numbers_and_words(printed(words))
    assert before[1] == after[1], "renew it: python -m tests.docs.test_plan"
    assert before[0] == pytest.approx(after[0], rel=0.03, abs=0.1), "renew it, as above"


if __name__ == "__main__":
    README.write_text(renewed(README.read_text()))
