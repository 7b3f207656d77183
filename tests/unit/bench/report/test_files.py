"""The files of a report: the same every time, well formed, complete, and with the rows' numbers."""

from __future__ import annotations

import csv
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

from markdown_it import MarkdownIt
from matplotlib.image import imread

from ds_llama.bench.report.row import parse
from ds_llama.bench.report.write import make
from tests.unit.bench.report.conftest import (
    DATA,
    Row,
    Write,
    changed,
    measured_rows,
    plain,
    real_rows,
    timed,
)

_EMPTY = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Tags that are closed in order, ids, what is loaded, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.loaded = list[str](), list[str](), list[str]()
        self.tags, self.words = Counter[str](), list[str]()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.open += [] if tag in _EMPTY else [tag]
        for name, value in attrs:
            self.ids += [value or ""] if name == "id" else []
            outside = name in ("src", "href", "xlink:href") and not (value or "").startswith("#")
            self.loaded += [f"{tag} {value}"] if outside else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _EMPTY:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def test_the_same_rows_give_the_same_bytes(real_folder: Path, tmp_path: Path) -> None:
    again = tmp_path / real_folder.name
    again.mkdir()
    for name in ("rows.jsonl", "case.json"):
        (again / name).write_bytes((DATA / name).read_bytes())
    files = make(again).files
    assert len(files) == 3 + 6 + 5
    for path in files:
        assert path.read_bytes() == (real_folder / path.name).read_bytes(), path.name


def test_the_page_is_whole_and_loads_nothing(real_folder: Path) -> None:
    text = (real_folder / "report.html").read_text()
    page = Page(text)
    assert page.loaded == []
    assert len(page.ids) == len(set(page.ids))
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)", text)
    assert "None" not in page.text
    anchors = re.findall(r'<a href="#([^"]+)"', text)
    assert len(anchors) == 2
    assert set(anchors) <= set(page.ids)
    drawn = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(drawn) == 11
    for svg in drawn:
        root = ElementTree.fromstring(svg)
        assert root.attrib["aria-label"]
        assert root.findall(".//{http://www.w3.org/2000/svg}text")
        assert not re.search(r"(fill|stroke): #(?!f{5}[ef])", svg), "a colour that no style changes"


def test_the_numbers_are_the_rows(real_folder: Path) -> None:
    page, rows = (real_folder / "report.html").read_text(), measured_rows()
    with (real_folder / "rows.csv").open() as file:
        lines = {line["key"]: line for line in csv.DictReader(file)}
    assert len(lines) == len(real_rows())
    for row in rows:
        assert f">{row['tokens_per_s']:,.0f}<" in page
        line = lines[row["key"]]
        assert float(line["tokens_per_s"]) == row["tokens_per_s"]
        measured = row["memory"]["measured"]
        assert int(line["measured_device_peak_bytes"]) == measured["device_peak_bytes"]
        assert float(line["backward_s"]) == row["parts_s"]["backward"]
    refused = [line for line in lines.values() if line["status"] == "refused"]
    assert {line["tokens_per_s"] for line in refused} == {""}
    assert all(line["reason"] for line in refused)


def test_the_plan_of_a_cpu_is_its_total(real_folder: Path) -> None:
    """Where the optimizer is on the host, what is counted on a CPU is both."""
    page = (real_folder / "report.html").read_text()
    for name in ("zero2+optimizer bf16", "zero3+all bf16"):
        row = page[page.index(f'class="text">{name}</th>') :]
        gap = re.search(r">([+-][\d.]+)%<", row[: row.index("</tr>")])
        assert gap is not None
        assert abs(float(gap[1])) < 1


def test_markdown_is_read_as_it_was_meant(real_folder: Path) -> None:
    text = (real_folder / "report.md").read_text()
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    kinds = Counter(token.type for token in tokens)
    page = Page((real_folder / "report.html").read_text())
    assert kinds["table_open"] == page.tags["table"]
    assert kinds["tr_open"] == page.tags["tr"]
    assert kinds["th_open"] + kinds["td_open"] == page.tags["th"] + page.tags["td"]
    images = re.findall(r"!\[[^\]]+\]\((.*?)\)", text)
    assert len(images) == 11
    for name in images:
        assert imread(real_folder / name).std() > 0.05
    flat = " ".join(page.text.split())
    spoken = [t.content for t in tokens if t.type == "inline" and "Take" in t.content]
    assert spoken
    assert re.sub(r"[\\*]", "", spoken[0]) in flat


def test_many_refused_cells_are_one_reason_and_failures_have_theirs(folder: Write) -> None:
    rows = measured_rows()[:2]
    refused = next(row for row in real_rows() if row["status"] == "refused")
    many = [changed(refused, f"r{number}", micro_batch_size=number) for number in range(1, 51)]
    failed = [
        changed(rows[0], status, status=status, reason=f"{status} <b>&|* it was", rule=None)
        for status in ("oom", "timeout", "error")
    ]
    make(path := folder([*rows, *many, *failed]))
    text, page = (path / "report.md").read_text(), (path / "report.html").read_text()
    assert text.count(refused["reason"].split(":")[0]) == 1
    assert "50 cells refused by" in text
    assert "<summary>which 50</summary>" in text
    assert Page(page).tags["details"] == 1
    for status, words in (
        ("oom", "out of memory"),
        ("timeout", "out of time"),
        ("error", "failed"),
    ):
        assert f"1 cell {words}: {status} &lt;b&gt;&amp;|* it was." in page
        assert rf"1 cell {words}: {status} \<b\>\&\|\* it was." in text


def test_nothing_measured(folder: Write) -> None:
    refused = [row for row in real_rows() if row["status"] == "refused"]
    report = make(path := folder(refused))
    assert "No cell was measured" in (path / "report.md").read_text()
    assert report.to_dict()["measured"] == 0
    assert [file.name for file in report.files] == ["report.html", "report.md", "rows.csv"]


def blind(row: Row) -> Row:
    """A compiled cell's: nothing is counted of it."""
    new = changed(row, "blind", compile=True, traffic=None, flops=None, hfu=None)
    new["memory"] = {"predicted": None, "measured": None, "process": None}
    return {**new, "grad_norms": [None] * 10, "joules_per_token": None}


def test_what_was_not_measured_is_no_number(folder: Write) -> None:
    row = blind(measured_rows()[0])
    row |= {"peak_flops": {"measured": 7e14, "vendor": 9.89e14}}
    row |= {"config": {"seed": 7, "affinity": [[0], [1]], "deepspeed_hash": "abc"}}
    report = make(path := folder([row | {"joules_of": ["package-0", "gpu0"]}]))
    text = (path / "report.md").read_text()
    assert "Its memory was not measured." in text
    assert "bf16 product of matrices 700 TFLOP/s a rank (the vendor says 989 TFLOP/s)" in text
    assert "- **Energy**: of the whole machine: package-0 and gpu0." in text
    assert "- **seed**: 7" in text
    assert ",abc," in (path / "rows.csv").read_text()
    assert {file.stem for file in report.files if file.suffix == ".png"} == {
        "throughput",
        "phases",
        "losses",
    }


def test_speed_alone(folder: Write) -> None:
    """A case that measures nothing beside it: the report says so, and reckons with no number."""
    rows = [{**blind(row), "key": row["key"], "parts_s": None} for row in measured_rows()]
    make(path := folder(rows))
    text = (path / "report.md").read_text()
    assert "- **Memory**: not measured, and neither are traffic and HFU;" in text
    assert "- **Phases**: not measured." in text
    assert "What limits its time was not measured." in text
    assert "Take " in text
    assert ",." not in text
    assert not re.search(r"\b(nan|inf|None)\b", text)


def test_a_profile_says_where_the_time_goes(folder: Write) -> None:
    names = ["aten::mm", "aten::copy_", "gloo:all_reduce", "void kernel<" + "x" * 90]
    spent = zip(names, (6e-3, 2e-3, 1e-3, 5e-4), strict=True)
    found = [{"name": name, "self_s": seconds, "calls": 2.0} for name, seconds in spent]
    profile = {"steps": 2, "clock": "cpu", "self_s": 1e-2, "operations": found}
    first, second = map(plain, measured_rows()[:2])
    make(path := folder([first | {"profile": profile}, second | {"profile": None}]))
    text = (path / "report.md").read_text()
    assert text.count("<summary>") == 1
    assert "aten::mm 60%, aten::copy_ 20%, gloo:all_reduce 10%</summary>" in text
    assert "| aten::mm | 60% | 6 ms | 2 |" in text
    assert "| all others | 5% | 500 us |  |" in text
    assert "…" in text
    assert "Shares of the self CPU time of all operations" in text


def test_a_changed_folder_says_so(folder: Write) -> None:
    rows = measured_rows()
    before = [timed(row, [0.1, 0.101, 0.1]) for row in rows[:3]]
    after = [timed(rows[0], [0.2, 0.201, 0.2]), timed(rows[1], [0.1, 0.101, 0.1])]
    report = make(path := folder(after), folder(before, "old"))
    assert report.comparison is not None
    assert [change.verdict for change in report.comparison.changes] == [
        "slower",
        "no difference seen",
    ]
    text = (path / "report.md").read_text()
    assert "## Change from old" in text
    assert "2 cells measured in both: 1 slower, 1 no difference seen." in text
    assert "1 only in old, not here" in text


def test_the_plan_is_held_against_this_packages_own_cells_alone() -> None:
    row = measured_rows()[0]
    for program, there in (("../peers/peer.py:way", False), ("ds_llama", True)):
        found = parse(changed(row, program=program)).measured
        assert found is not None
        assert (found.planned_peak_bytes is not None) == there
        assert (found.planned_steady_bytes is not None) == there


def test_names_of_any_length_leave_room_for_the_bars(folder: Write) -> None:
    """Plots are drawn without a warning, which would be an error here, and differ by their ends."""
    row = plain(measured_rows()[0])
    program = "../peers/a_program_with_a_long_name.py:and_a_way_of_its_own_that_is_longer_yet"
    rows = [changed(row, str(n), program=f"{program}_{n}", model_name="m" * 90) for n in range(2)]
    make(path := folder(rows))
    page, name = (path / "report.html").read_text(), f"{program[9:].replace('.py', '')}_1"
    assert f">{name}<" in page  # in tables; in plots it is
    assert f">{name[:12]}…{name[-23:]}<" in page
