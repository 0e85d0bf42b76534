"""Converts time columns to UTC microseconds: timestamps, dates, ISO text, seconds since 1970.

Input: Arrow arrays. Output: arrays of `schema.TIMESTAMP`. A number is an epoch only if all values are in the years 1990
to 2100 in one unit, or if the unit is named; a time without a zone is UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from rec_ray.sample.csv_files import WORDS_FOR_NULL
from rec_ray.schema import TIMESTAMP

UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1, "ns": 0.001}
"""Unit of an epoch -> microseconds."""
EARLIEST, LATEST = (datetime(year, 1, 1, tzinfo=UTC).timestamp() * 1e6 for year in (1990, 2100))
NOT_A_TIME = -(2**63) // 1000
"""Microseconds of numpy's NaT, which some programs write as the time 1677-09-21."""
SENTINELS = tuple(datetime(year, 1, 1) for year in (1, 1900, 1970))
"""Times that mean null in a column of event times."""
ZONE = r"[T ].*(Z|[+-]\d\d(:?\d\d)?)$"
"""A zone at the end of a time; a bare date may also end with `-02`."""
ISO = r"^\d{4}-\d\d-\d\d"
FULL_ISO = r"^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?( ?(Z|UTC|[+-]\d\d(:?\d\d)?))?)?$"
"""A complete ISO date, optionally with a time, optionally with a zone."""


def is_time(kind: pa.DataType) -> bool:
    """Return True for an Arrow timestamp or date."""
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def unit_of(lowest: float, highest: float) -> str | None:
    """Return the unit in which both numbers are instants of 1990 to 2100; the ranges of the units do not overlap."""
    for unit, micros in UNITS.items():
        if lowest * micros >= EARLIEST and highest * micros < LATEST:
            return unit
    return None


def is_calendar_date(number: float) -> bool:
    """Return True for a whole number such as 20240531, which as seconds since 1970 would be a day of August 1970."""
    if number != int(number):
        return False
    return 1990 <= number // 10_000 < 2100 and 1 <= number // 100 % 100 <= 12


def without_words_for_null(texts: pa.Array) -> pa.Array:
    """Return texts without surrounding blanks, and null for the words that mean null."""
    trimmed = pc.utf8_trim_whitespace(texts)
    absent = pc.is_in(pc.utf8_lower(trimmed), value_set=pa.array(WORDS_FOR_NULL))
    return pc.if_else(absent, pa.scalar(None, pa.string()), trimmed)


def as_utc(array: pa.Array, unit: str | None = None) -> pa.Array:
    """Return times in UTC microseconds. unit: of numbers and of texts with numbers.

    Raises:
        ArrowInvalid: a value is not a time, or out of range.
    """
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        texts = without_words_for_null(pc.cast(array, pa.string()))
        return as_utc(pc.cast(texts, pa.float64()), unit) if unit else _parse(texts)
    if pa.types.is_timestamp(kind):
        # Nanoseconds are truncated; coarser units must fit.
        micros = pc.cast(array, pa.timestamp("us", kind.tz), safe=kind.unit != "ns")
        micros = pc.cast(micros, TIMESTAMP) if kind.tz else pc.assume_timezone(micros, "UTC")
        number = pc.cast(micros, pa.int64())
        absent = pc.is_in(number, value_set=pa.array([NOT_A_TIME, NOT_A_TIME + 1]))
        return pc.if_else(absent, pa.scalar(None, TIMESTAMP), micros)
    if pa.types.is_date(kind):
        return pc.assume_timezone(pc.cast(array, pa.timestamp("us")), "UTC")
    if unit is None:
        raise pa.ArrowInvalid(f"{kind} without a unit is not a time")
    if pa.types.is_integer(kind):
        whole = pc.cast(array, pa.int64())
        micros = pc.divide(whole, 1000) if unit == "ns" else pc.multiply_checked(whole, int(UNITS[unit]))
    else:
        number = pc.cast(array, pa.float64())
        number = pc.if_else(pc.is_nan(number), pa.scalar(None, pa.float64()), number)
        micros = pc.cast(pc.round(pc.multiply(number, UNITS[unit])), pa.int64())
    return pc.cast(micros, TIMESTAMP)


def without_sentinels(times: pa.Array) -> pa.Array:
    """Return event times, with null for sentinels such as 1900 or 1970, at which a shop has no event."""
    absent = pc.is_in(times, value_set=pc.assume_timezone(pa.array(SENTINELS, pa.timestamp("us")), "UTC"))
    return pc.if_else(absent, pa.scalar(None, TIMESTAMP), times)


def _parse(texts: pa.Array) -> pa.Array:
    """Parse ISO 8601: a date, optionally a time after `T` or a blank, optionally a zone."""
    texts = pc.replace_substring_regex(texts, pattern=" ?UTC$", replacement="Z")
    texts = pc.replace_substring_regex(texts, pattern=r"(:\d\d(?:\.\d+)?) ([+-]\d\d:?\d\d)$", replacement=r"\1\2")
    # Arrow reads six digits of a second.
    texts = pc.replace_substring_regex(texts, pattern=r"(\.\d{6})\d+", replacement=r"\1")
    wrong = pc.invert(pc.fill_null(pc.match_substring_regex(texts, ISO), True))
    if pc.any(wrong).as_py():
        raise _no_time(texts.filter(wrong)[0])
    zoned = pc.fill_null(pc.match_substring_regex(texts, ZONE), False)
    null = pa.scalar(None, pa.string())
    try:
        with_zone = pc.cast(pc.if_else(zoned, texts, null), TIMESTAMP)
        without = pc.assume_timezone(pc.cast(pc.if_else(zoned, null, texts), pa.timestamp("us")), "UTC")
    except pa.ArrowInvalid:
        raise _no_time(next(text for text in texts.drop_null() if not _is_iso(text))) from None
    return pc.if_else(zoned, with_zone, without)


def _is_iso(text: pa.Scalar) -> bool:
    kind = pa.timestamp("us", "UTC" if pc.match_substring_regex(text, ZONE).as_py() else None)
    try:
        pc.cast(text, kind)
    except pa.ArrowInvalid:
        return False
    return True


def _no_time(text: pa.Scalar) -> pa.ArrowInvalid:
    return pa.ArrowInvalid(f"{text.as_py()!r} is not an ISO time, such as 2024-05-31T12:00:00Z")
