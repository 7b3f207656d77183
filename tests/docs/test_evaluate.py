"""The README's section on evaluation: its commands on its rows, and the figures that it lists."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ds_llama.cli.main import main
from ds_llama.data import ShardWriter
from tests.unit.evals.exported import TEXT, exported_run

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SECTION = README.split("\n## Evaluate\n")[1].split("\n## ")[0]
ROWS = re.findall(r"```jsonl\n(.*?)```", SECTION, flags=re.DOTALL)


def commands() -> list[list[str]]:
    [block] = re.findall(r"```bash\n(.*?)```", SECTION, flags=re.DOTALL)
    return [line.split()[1:] for line in block.splitlines()]


def listed() -> set[str]:
    rows = [line.split("|")[1] for line in SECTION.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_the_section_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = exported_run(tmp_path)
    content = json.loads((run / "run.json").read_text())
    content["data"]["validation"] = "validation"
    (run / "run.json").write_text(json.dumps(content))
    monkeypatch.chdir(run)
    with ShardWriter("validation", vocab_size=290) as shard:
        shard.add(range(3, 200))
    Path("held_out.txt").write_text(TEXT * 2)
    Path("rows.jsonl").write_text("".join(ROWS))
    Path("free.jsonl").write_text(json.dumps({"prompt": "the", "answer": ["quick", "fox"]}))
    *ours, harness = commands()
    assert harness[:3] == ["eval", "RUN_DIR", "--lm-eval"]
    assert len(ours) == 3
    ours += [
        ["eval", "RUN_DIR", "--data", name, "--generate"] for name in ("rows.jsonl", "free.jsonl")
    ]
    found: set[str] = set()
    for words in ours:
        assert main([str(run) if word == "RUN_DIR" else word for word in [*words, "--json"]]) == 0
        report = json.loads(capsys.readouterr().out)
        figures = {name for name, value in report.items() if isinstance(value, int | float)}
        found |= figures - {"ema", "rows", "sequence_length", "stride"}
    assert {name for name in found if not name.endswith("_norm")} | {"acc_norm"} == listed()
    assert len(Path("answers.jsonl").read_text().splitlines()) == 2
