"""Parse and print bytes, counts and durations: the units that people type and read."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from ds_llama.errors import CallError, DsLlamaError

_DECIMAL_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "pb": 10**15}
_BINARY_BYTES = {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "pib": 2**50}
_BYTES = {"": 1, **_DECIMAL_BYTES, **_BINARY_BYTES}
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_SECONDS = {
    **dict.fromkeys(("", "s", "sec", "second", "seconds"), Decimal(1)),
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), Decimal("0.001")),
    **dict.fromkeys(("m", "min", "minute", "minutes"), Decimal(60)),
    **dict.fromkeys(("h", "hour", "hours"), Decimal(3600)),
    **dict.fromkeys(("d", "day", "days"), Decimal(86400)),
}
# Exponents are bounded so that "1e999999999" is a mistake and not an integer of a billion digits.
_QUANTITY = re.compile(
    r"\s*(\d[\d_,]*(?:\.\d+)?|\.\d+)(e[+-]?\d{1,2})?\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII
)


def parse_bytes(
    value: str | int, *, where: str = "command line", error: type[DsLlamaError] = CallError
) -> int:
    """Bytes of "80GiB" (2^30), "512MB" (10^6), "123" or 123; a fraction of a byte is rounded.

    Raises `error` for anything else, "80G" included: it means 10^9 to some and 2^30 to others.
    """
    remedy = "write a whole number of bytes, or a number with KB, MB, GB, TB, KiB, MiB, GiB or TiB"
    if isinstance(value, str) and re.fullmatch(r"[\d._, ]+[kmgtp]", value.strip(), re.IGNORECASE):
        letter = value.strip()[-1].upper()
        remedy = f"write {letter}iB for a power of 1024 or {letter}B for a power of 1000"
    number = _parse(value, _BYTES, "a size in bytes", remedy, where, error)
    return int(number.to_integral_value())


def parse_count(
    value: str | int, *, where: str = "command line", error: type[DsLlamaError] = CallError
) -> int:
    """Whole number of "1.5B" (10^9), "2T" (10^12), "10k", "3M", "1e6", "1_000" or 1000."""
    remedy = "write a whole number, or one with k, M, B or T for 10^3, 10^6, 10^9 or 10^12"
    number = _parse(value, _COUNTS, "a count", remedy, where, error)
    if number != number.to_integral_value():
        raise error(f"{value!r} is not a whole number", where=where, remedy=remedy)
    return int(number)


def parse_duration(
    value: str | int | float,
    *,
    where: str = "command line",
    error: type[DsLlamaError] = CallError,
) -> float:
    """Seconds of "30s", "2h", "1h30m", "1 h 02 min", "250ms", "45" or 45.0."""
    remedy = "write seconds, or numbers with ms, s, min, h or d, such as 90s, 2h or 1h30m"
    if not isinstance(value, str):
        return float(_parse(value, _SECONDS, "a duration", remedy, where, error))
    parts = re.findall(r"[\d._,]+(?:e[+-]?\d+)?\s*[a-zA-Z]*\s*", value)
    if not parts or "".join(parts) != value.lstrip():
        raise error(f"{value!r} is not a duration", where=where, remedy=remedy)
    numbers = [_parse(part, _SECONDS, "a duration", remedy, where, error) for part in parts]
    return float(sum(numbers))


def _parse(
    value: str | int | float,
    units: dict[str, int] | dict[str, Decimal],
    kind: str,
    remedy: str,
    where: str,
    error: type[DsLlamaError],
) -> Decimal:
    match = _QUANTITY.fullmatch(str(value))
    if isinstance(value, bool) or match is None or match[3].lower() not in units:
        raise error(f"{value!r} is not {kind}", where=where, remedy=remedy)
    digits = match[1].replace("_", "").replace(",", "") + (match[2] or "")
    try:
        return Decimal(digits) * units[match[3].lower()]
    except InvalidOperation:
        raise error(f"{value!r} is not {kind}", where=where, remedy=remedy) from None


def format_bytes(number_bytes: int | float) -> str:
    """Three significant digits in powers of 1024: "1.5 GiB", "80 GiB", "512 B"."""
    return _scaled(number_bytes, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"), " ")


def format_decimal_bytes(number_bytes: int | float) -> str:
    """Three significant digits in powers of 1000, as links are sold: "1.5 GB", "800 MB"."""
    return _scaled(number_bytes, 1000, ("B", "KB", "MB", "GB", "TB", "PB"), " ")


def format_count(number: int | float) -> str:
    """Three significant digits in powers of 1000: "1.24B", "10k", "999"."""
    return _scaled(number, 1000, ("", "k", "M", "B", "T"), "")


def _scaled(number: int | float, base: int, names: tuple[str, ...], space: str) -> str:
    if number < 0:
        return "-" + _scaled(-number, base, names, space)
    scaled, index = float(number), 0
    # The rounded figure decides, so that 1048575 bytes read "1 MiB" and not "1024 KiB".
    while index < len(names) - 1 and round(scaled) >= base:
        scaled, index = scaled / base, index + 1
    return f"{_three_digits(scaled)}{space}{names[index]}".rstrip()


def _three_digits(value: float) -> str:
    decimals = 2 if round(value, 2) < 10 else 1 if round(value, 1) < 100 else 0
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if decimals else text


def format_duration(seconds: float) -> str:
    """Two units at most: "350 ms", "1.5 s", "12 s", "3 min 05 s", "1 h 02 min", "2 d 03 h"."""
    if seconds < 0:
        return "-" + format_duration(-seconds)
    if round(seconds * 1000) < 1000:
        return f"{round(seconds * 1000)} ms"
    if round(seconds, 1) < 10:
        return f"{round(seconds, 1):g} s"
    for limit, small, names in ((3600, 1, ("min", "s")), (86400, 60, ("h", "min"))):
        units = round(seconds / small)
        if small == 1 and units < 60:
            return f"{units} s"
        if units * small < limit:
            return f"{units // 60} {names[0]} {units % 60:02d} {names[1]}"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"
