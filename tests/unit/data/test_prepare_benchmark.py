"""benchmarks/data_prepare.py: its texts, and its table."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from ds_llama.data.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def script() -> Any:
    path = Path(__file__).parents[3] / "benchmarks" / "data_prepare.py"
    spec = importlib.util.spec_from_file_location("data_prepare", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_texts_are_the_same_each_time(script: Any) -> None:
    texts = script.texts_of(0.05)
    assert texts == script.texts_of(0.05)
    assert 0.05 * 2**20 <= sum(len(text.encode()) for text in texts) < 0.1 * 2**20


def test_prepare_is_timed_as_a_command(script: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"text": "def loss"}\n')
    (tmp_path / "tokenizer").symlink_to(tokenizer.path.parent)
    row = script.prepare(tmp_path, 1)
    assert row["tokens"] == len(tokenizer.encode("def loss", bos=True, eos=True))
    assert row["wall_s"] > 0
    assert row["cpu_s"] > 0


def test_the_table_sets_each_beside_raw(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trials = [{"wall_s": wall, "cpu_s": 8.0} for wall in (4.0, 5.0, 9.0)]
    slower = [{"wall_s": 10.0, "cpu_s": 12.0, "map_s": 7.0}]
    lines = script.table({"raw": trials, "datasets": slower}, 50.0)
    assert [line["mb_per_s"] for line in lines] == [10.0, 5.0]
    assert [line["of_raw"] for line in lines] == [1.0, 0.5]
    assert [line["cpu_of_raw"] for line in lines] == [1.0, 1.5]
    script.show(lines)
    shown = capsys.readouterr().out.splitlines()
    line = "datasets 10.00 5.00 0.50 12.00 1.50 map alone 7.00 s"
    assert " ".join(shown[2].split()) == line
