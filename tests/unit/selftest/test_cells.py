"""Which cells there are, and which a pattern means."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ds_llama.config.deepspeed import check
from ds_llama.errors import CallError
from ds_llama.selftest.cells import Cell, matrix, select


def test_the_matrix_is_what_was_promised() -> None:
    cells = matrix()
    assert len({cell.name for cell in cells}) == len(cells) == 4 * (11 + 10 + 10)
    assert {(c.precision, c.stage) for c in cells} == {
        ("fp32", 0),
        *((p, stage) for p in ("fp32", "bf16", "fp16") for stage in (1, 2, 3)),
    }
    assert {c.offload for c in cells if c.stage == 3} == {
        *("none", "optimizer", "parameters", "all", "nvme", "nvme-all")
    }
    for cell in cells:
        twin = Cell(cell.precision, cell.stage, cell.offload, not cell.recompute, 4)
        assert twin in cells


@pytest.mark.parametrize("cell", matrix(), ids=lambda cell: cell.name)
def test_every_cell_is_a_clean_deepspeed_json(cell: Cell) -> None:
    assert [p for p in check(cell.deepspeed("/disk")) if p.severity == "error"] == []
    assert ("activation_checkpointing" in cell.deepspeed()) == cell.recompute


def test_patterns_are_shell_patterns_anywhere_in_a_name() -> None:
    assert select([]) == matrix()
    assert {c.precision for c in select(["bf16*stage3", "fp16*stage3"])} == {"bf16", "fp16"}
    assert {c.stage for c in select(["bf16*stage3", "fp16*stage3"])} == {3}
    assert all(c.recompute for c in select(["recompute"]))


def test_a_pattern_without_a_cell_is_a_wrong_call() -> None:
    with pytest.raises(CallError, match="no cell's name has 'stage4' in it") as caught:
        select(["stage1", "stage4"])
    assert caught.value.where == "--only"
    assert "fp32-stage0-none-kept-accumulation1" in caught.value.remedy


def test_cells_need_no_torch() -> None:
    code = (
        "import sys; from ds_llama.selftest import cells, outcome, report, sabotage; "
        "from ds_llama.cli import selftest_table; "
        "print({'torch', 'deepspeed'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
