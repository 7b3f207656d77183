"""What is said of files that train nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ds_llama.bench.program import open_program, split
from ds_llama.errors import CallError

NOTHING: Any = None


def test_a_peer_that_is_not_installed_is_named(tmp_path: Path) -> None:
    file = tmp_path / "peer.py"
    file.write_text("import a_package_that_nobody_has\n")
    with pytest.raises(CallError) as caught:
        open_program(str(file), NOTHING, {})
    assert "needs a_package_that_nobody_has, which is not installed" in str(caught.value)
    assert str(file) in str(caught.value)
    assert "--only" in str(caught.value)


@pytest.mark.parametrize("text", [None, "import math\n"])
def test_a_file_without_a_program(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "peer.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(CallError, match="is no program: a Python file with a function"):
        open_program(f"{file}:way", NOTHING, {})


def test_the_way_of_a_file() -> None:
    assert split("/a/b.py:ddp") == ("/a/b.py", "ddp")
    assert split("/a/b.py") == ("/a/b.py", "")
