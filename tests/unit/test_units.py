from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_llama import units
from ds_llama.errors import CallError, ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80GiB", 80 * 2**30),
        ("512MB", 512 * 10**6),
        ("1.5 GiB", 3 * 2**29),
        ("123", 123),
        (123, 123),
        ("1_000 b", 1000),
        ("2tib", 2**41),
        (".5kB", 500),
        ("1.1GiB", 1181116006),
    ],
)
def test_parse_bytes(text, expected):
    assert units.parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1GiB", "80GiBB", "1e99999999", True, "\u0661B", "nan"]
)
def test_parse_bytes_refuses(text):
    with pytest.raises(CallError) as caught:
        units.parse_bytes(text, where="--gpu-memory")
    assert caught.value.where == "--gpu-memory"
    assert "is not a size in bytes" in caught.value.what
    assert "GiB" in caught.value.remedy


def test_a_bare_letter_is_ambiguous():
    with pytest.raises(ConfigError) as caught:
        units.parse_bytes("80G", where="run.json:x", error=ConfigError)
    assert caught.value.remedy == "write GiB for a power of 1024 or GB for a power of 1000"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1.5B", 1_500_000_000), ("2T", 2 * 10**12), ("10k", 10_000), ("1e6", 10**6), (7, 7)],
)
def test_parse_count(text, expected):
    assert units.parse_count(text) == expected


@pytest.mark.parametrize(("text", "what"), [("1.5", "whole number"), ("ten", "is not a count")])
def test_parse_count_refuses(text, what):
    with pytest.raises(CallError, match=what):
        units.parse_count(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30s", 30),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1 h 02 min", 3720),
        ("250ms", 0.25),
        ("45", 45),
        (1.5, 1.5),
        ("1d", 86400),
    ],
)
def test_parse_duration(text, expected):
    assert units.parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "1h now", "-1s", "1y", float("inf"), True])
def test_parse_duration_refuses(text):
    with pytest.raises(CallError, match="is not a duration"):
        units.parse_duration(text)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1536 * 2**20, "1.5 GiB"),
        (80 * 2**30, "80 GiB"),
        (2**20 - 1, "1 MiB"),
        (-(2**30), "-1 GiB"),
        (2000 * 2**50, "2000 PiB"),
    ],
)
def test_format_bytes(value, expected):
    assert units.format_bytes(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1235814400, "1.24B"), (10_000, "10k"), (999, "999"), (999_999, "1M"), (8.03e9, "8.03B")],
)
def test_format_count(value, expected):
    assert units.format_count(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.35, "350 ms"),
        (0.9996, "1 s"),
        (1.5, "1.5 s"),
        (12, "12 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3720, "1 h 02 min"),
        (3599.9, "1 h 00 min"),
        (86399, "1 d 00 h"),
        (183600, "2 d 03 h"),
        (-12, "-12 s"),
    ],
)
def test_format_duration(value, expected):
    assert units.format_duration(value) == expected


@given(st.integers(0, 2**60))
def test_bytes_come_back_within_half_a_percent(value):
    assert units.parse_bytes(units.format_bytes(value)) == pytest.approx(value, rel=0.0051)


@given(st.integers(0, 10**15))
def test_counts_come_back_within_half_a_percent(value):
    assert units.parse_count(units.format_count(value)) == pytest.approx(value, rel=0.0051)


@given(st.floats(0, 1e7))
def test_durations_come_back(value):
    """Within what the smaller unit rounds away: half of it, or half a millisecond."""
    text = units.format_duration(value)
    step = {"ms": 0.001, "s": 1, "min": 60, "h": 3600}[text.split()[-1]]
    assert units.parse_duration(text) == pytest.approx(value, abs=step / 2 + 1e-6)


@given(st.text())
def test_any_text_is_a_number_or_a_call_error(text):
    for parse in (units.parse_bytes, units.parse_count, units.parse_duration):
        with contextlib.suppress(CallError):
            assert parse(text) >= 0
