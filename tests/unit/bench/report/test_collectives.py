"""comm.json in a benchmark's folder: shown, alone too, and one error where it is another file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds_llama.bench import comm_stages
from ds_llama.bench.report.folder import read_folder
from ds_llama.bench.report.write import make
from ds_llama.errors import DataError
from tests.unit.bench.report.conftest import Write, measured_rows, plain
from tests.unit.bench.test_comm import document, stages_of


def write(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    found = {**document(2, 1.4e9), "run": "llama-3.2-1b"}
    found["rows"][-1]["bus_bytes_per_s"] = 0.7e9
    found["stages"] = [comm_stages.told(stage, found, None) for stage in stages_of(2)]
    found["provenance"] = {"processor": "Some <CPU>", "cores": 2}
    (folder / "comm.json").write_text(json.dumps(found))
    return folder


def test_it_is_shown_alone(tmp_path: Path) -> None:
    report = make(write(tmp_path / "links"))
    names = [path.name for path in report.files]
    assert names == ["report.html", "report.md", "collectives.png"]
    text = (tmp_path / "links/report.md").read_text()
    assert "2 ranks on Some \\<CPU\\> (2 cores), gloo." in text
    assert "Link: 1.4 GB/s each way between neighbours" in text
    assert "| collective | 4 KiB | 1 MiB | 256 MiB | most, of link |" in text
    assert "| all\\_gather bf16 | 1.4 | 1.4 | 1.4 | 100% |" in text
    assert "| reduce fp32 | 1.4 | 1.4 | 0.7 | 100% |" in text
    assert "Left out: 16 GiB of reduce fp32: the first needs more." in text
    assert "- **zero2**: stage 2 moves 3.71 GB a step over each link: 2.65 s at 1.4 GB/s." in text
    assert "cells measured" not in text
    assert report.to_dict()["collectives"] is True


def test_it_is_shown_beside_rows(folder: Write) -> None:
    path = write(folder([plain(measured_rows()[0])]))
    report = make(path)
    text = (path / "report.md").read_text()
    assert text.index("1 of 1 cells measured") < text.index("## Collectives")
    assert {"collectives.png", "rows.csv", "throughput.png"} <= {p.name for p in report.files}


@pytest.mark.parametrize(
    ("text", "what"),
    [("{", "no JSON"), ("{}", "device: Field required"), ("[]", "Input should be a valid dict")],
)
def test_another_file_of_that_name(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "comm.json").write_text(text)
    with pytest.raises(DataError, match="is not what `ds-llama bench comm` writes") as caught:
        read_folder(tmp_path)
    assert what in caught.value.what
    assert caught.value.where == str(tmp_path / "comm.json")
    assert "ds-llama bench comm --out" in caught.value.remedy
