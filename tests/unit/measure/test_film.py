"""The film of a real training step, and its two files, read by torch's own viewer and by the rules.

The oracle of the snapshot is `torch.cuda._memory_viz`, which reads what CUDA's allocator wrote.
"""

from __future__ import annotations

import json
import pickle
import pickletools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.cuda import _memory_viz as viz

from ds_llama.config import preset
from ds_llama.measure import film as films
from ds_llama.measure import snapshot, timeline
from ds_llama.measure.accounting import Account
from ds_llama.measure.film import Event, Film, Span
from ds_llama.model.llama import Llama

# What the viewer's own reader of pickles knows (torch/utils/viz/MemoryViz.js, `unpickle`).
OPCODES = {
    *("APPENDS", "BINGET", "BININT", "BININT1", "BININT2", "EMPTY_DICT", "EMPTY_LIST", "FRAME"),
    *("LONG1", "LONG_BINGET", "MARK", "MEMOIZE", "PROTO", "SETITEMS", "SHORT_BINUNICODE", "STOP"),
    *("TUPLE2", "APPEND", "NEWFALSE", "BINPUT", "BINUNICODE", "EMPTY_TUPLE", "NEWTRUE", "NONE"),
    *("BINFLOAT", "TUPLE", "TUPLE1", "TUPLE3", "LONG_BINPUT", "LIST", "DICT", "SETITEM"),
}


@pytest.fixture(scope="module")
def account() -> Account:
    """Two steps of a small model, with stacks; `steps` are the edges at which they began."""
    model = Llama(preset("tiny"), seed=0)
    update = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.zeros(2, 64, dtype=torch.int64)
    account = Account(stacks=True)
    account.track(model.parameters())
    account.steps = []  # type: ignore[attr-defined]
    with account:
        for _ in range(2):
            account.steps.append(len(account.edges))  # type: ignore[attr-defined]
            with account.phase("forward"):
                loss = model(ids, labels=ids).loss
            with account.phase("backward"):
                loss.backward()
            del loss
            with account.phase("step"):
                update.step()
                update.zero_grad()
    account.kept = model, update  # type: ignore[attr-defined]
    return account


@pytest.fixture(scope="module")
def film(account: Account) -> Film:
    return films.of(account, account.steps)  # type: ignore[attr-defined]


def test_a_cut_has_the_accounts_peaks(account: Account, film: Film) -> None:
    assert film.last_step == 2
    for span, phase in zip(film.spans, account.phases, strict=True):
        assert span.name == phase.name
        moments = [moment["device"] for moment in film.cut(span, 25)]
        assert len(moments) == 25
        top = max(moments, key=lambda moment: sum(moment.values()))
        assert sum(top.values()) == phase.total.peak_bytes
        assert top == phase.total.peak
    assert film.span("step", 2) == film.spans[-1]


def test_lines_are_the_packages_and_the_models(film: Film) -> None:
    names = {(frame.filename, frame.name) for stack in film.stacks for frame in stack}
    assert ("ds_llama/model/attention.py", "forward") in names
    assert not any("measure" in name and "tests" not in name for name, _ in names)
    assert not any(name.startswith("torch/") for name, _ in names)
    made = [event for event in film.events if event.category == "activations"]
    assert all(event.stack is not None and film.stacks[event.stack] for event in made)


def test_a_film_goes_through_a_pipe(film: Film) -> None:
    assert pickle.loads(pickle.dumps(film)) == film


# --- the snapshot ------------------------------------------------------------------------------


def test_torchs_viewer_reads_the_snapshot(account: Account, film: Film, tmp_path: Path) -> None:
    path = tmp_path / "memory.pickle"
    snapshot.write(film, path)
    used = {opcode.name for opcode, _, _ in pickletools.genops(path.read_bytes())}
    assert used <= OPCODES
    read = pickle.loads(path.read_bytes())
    for plot in (viz.trace_plot, viz.segment_plot):
        assert "snapshot.pickle" in plot(read)
    live = sum(p.numel() * 4 for p in account.kept[0].parameters()) * 3  # type: ignore[attr-defined]
    assert f"total_reserved: {viz.Bytes(read['segments'][0]['total_size'])}" in viz.segsum(read)
    assert read["segments"][0]["requested_size"] >= live
    told = viz.trace(read)
    assert told.count("free completed") == sum(e.delta_bytes < 0 for e in film.events)
    lines = viz.memory(read, format_flamegraph=str).splitlines()
    assert sum(int(line.rsplit(" ", 1)[1]) for line in lines if "gaps" not in line) >= live
    # Only what is there at the end is left.
    left = viz.filter_alloc_free_pairs(read)["device_traces"][0]
    blocks = [b for b in read["segments"][0]["blocks"] if b["state"] == "active_allocated"]
    assert Counter(e["action"] for e in left) == {"segment_alloc": 1, "alloc": len(blocks)}


def test_the_viewer_dies_without_a_category_called_unknown(film: Film) -> None:
    traces = snapshot.snapshot(film)["device_traces"]
    categories = {event["category"] for trace in traces for event in trace}
    assert "unknown" in categories
    assert {"parameters", "activations", "gradients", "optimizer"} <= categories


@st.composite
def random_films(draw: st.DrawFn) -> Film:
    """Storages of two places that are made, resized and dropped in any order."""
    sizes: dict[int, int] = {}
    events = []
    for _ in range(draw(st.integers(0, 60))):
        storage = draw(st.integers(0, 12))
        size = draw(st.integers(0, 5000))
        delta, sizes[storage] = size - sizes.get(storage, 0), size
        if delta:
            place = "host" if storage % 3 == 0 else "device"
            events.append(Event(storage, place, "other", delta, None))
    return Film(events, [Span("forward", 0, len(events), 1)])


@given(random_films())
def test_no_two_storages_share_an_address(film: Film) -> None:
    found = snapshot.snapshot(film)
    assert [s["device"] for s in found["segments"]] == [
        i for i, trace in enumerate(found["device_traces"]) if trace
    ]
    for segment in found["segments"]:
        trace = found["device_traces"][segment["device"]]
        end = _replay(trace, segment["address"], segment["total_size"])
        at = segment["address"]
        for block in segment["blocks"]:
            assert block["address"] == at
            at += block["size"]
            if block["state"] == "active_allocated":
                assert end.pop(block["address"]) == block["requested_size"]
        assert at == segment["address"] + segment["total_size"]
        assert not end
    if found["segments"]:
        viz.segsum(found)  # raises where a segment's sums do not agree


def _replay(trace: list[dict[str, Any]], start: int, size: int) -> dict[int, int]:
    live: dict[int, int] = {}
    for event in trace:
        address, extent = event["addr"], event["size"]
        if event["action"] == "alloc":
            assert start <= address <= address + extent <= start + size
            assert all(a + s <= address or address + extent <= a for a, s in live.items())
            live[address] = extent
        elif event["action"] == "free_completed":
            assert live.pop(address) == extent
    return live


# --- the timeline ------------------------------------------------------------------------------


def test_the_timeline_keeps_the_trace_event_format(
    account: Account, film: Film, tmp_path: Path
) -> None:
    path = tmp_path / "timeline.json"
    timeline.write(film, path)
    trace = json.loads(path.read_text())
    assert trace["displayTimeUnit"] in ("ms", "ns")
    counters: Counter[tuple[int, str]] = Counter()
    peaks: Counter[tuple[int, str]] = Counter()
    lives: dict[int, list[dict[str, Any]]] = {}
    for event in trace["traceEvents"]:
        assert {"ph", "name", "pid", "tid"} <= event.keys()
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "process_sort_index", "thread_name")
        elif event["ph"] in "be":
            assert {"id", "cat", "ts"} <= event.keys()
            lives.setdefault(event["id"], []).append(event)
        elif event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0
        else:
            assert event["ph"] == "C"
            assert all(isinstance(value, int) for value in event["args"].values())
            key = event["pid"], event["name"]
            counters[key] = event["args"]["bytes"]
            peaks[key] = max(peaks[key], counters[key])
    for begin, end in lives.values():
        assert (begin["ph"], end["ph"], begin["name"]) == ("b", "e", end["name"])
        assert begin["ts"] <= end["ts"]
    assert any("ds_llama/model/mlp.py" in begin["args"]["made by"] for begin, _ in lives.values())
    assert peaks[1, "total"] == max(phase.total.peak_bytes for phase in account.phases)
    assert counters[1, "parameters"] == account.phases[-1].total.now["parameters"]
    slices = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert [(e["name"], e["args"]["step"]) for e in slices] == [
        (name, step) for step in (1, 2) for name in ("forward", "backward", "step")
    ]
