"""Raw columns as arrays: every Arrow layout of the same values reads the same, and what cannot be read says so."""

import zlib
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rec_ray.errors import SchemaError
from rec_ray.retrieval.features.columns import as_numbers, as_values, as_vectors, hash_words, index_of, interleave
from rec_ray.retrieval.ragged import ragged_positions
from rec_ray.schema import FeatureDeclaration, Kind

LONG = "長い名前 " * 20_000


def layouts(values: list[Any], kind: pa.DataType) -> list[pa.Table]:
    """The same column whole, in chunks, as a slice with an offset, and as a chunk that is a slice."""
    whole = pa.array(values, kind)
    padded = pa.concat_arrays([whole[-1:], whole, whole[:1]])[1 : len(values) + 1]
    chunks = [whole[:1], whole[1:1], padded[1:]]
    columns = [pa.chunked_array([whole]), pa.chunked_array(chunks, kind), pa.chunked_array([padded], kind)]
    return [pa.table({"f": column}) for column in columns]


def bags(table: pa.Table, kind: Kind, separator: str | None = None) -> list[list[str]]:
    counts, values = as_values(table, "f", FeatureDeclaration(kind, separator=separator))
    assert counts.dtype == np.int32
    ends = np.cumsum(counts)
    flat = values.to_pylist()
    assert len(flat) == (ends[-1] if len(ends) else 0)
    return [flat[end - count : end] for end, count in zip(ends, counts, strict=True)]


def numbers(array: pa.Array, kind: Kind = "numeric") -> list[float]:
    values = as_numbers(pa.table({"f": array}), "f", FeatureDeclaration(kind))
    assert values.dtype == np.float64
    return values.tolist()


# --- numbers


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.decimal128(5, 2), pa.bool_()]
)
def test_numbers_of_every_type_are_read_and_nulls_are_nan(kind: pa.DataType) -> None:
    values: list[Any] = [1, None, 0, 1]
    if pa.types.is_decimal(kind):
        values = [None if v is None else Decimal(v) for v in values]
    if pa.types.is_boolean(kind):
        values = [None if v is None else bool(v) for v in values]
    if kind == pa.float16():
        values = [None if v is None else np.float16(v) for v in values]
    for table in layouts(values, kind):
        read = as_numbers(table, "f", FeatureDeclaration("numeric"))
        np.testing.assert_array_equal(read, [1, np.nan, 0, 1])


def test_what_float32_cannot_hold_is_missing() -> None:
    values = [float("nan"), float("inf"), -float("inf"), 1e39, -1.7e308, 3e38, 1.0]
    np.testing.assert_array_equal(numbers(pa.array(values)), [np.nan] * 5 + [3e38, 1.0])


def test_a_column_without_any_value_is_missing_whatever_its_kind() -> None:
    for kind in ("numeric", "timestamp"):
        np.testing.assert_array_equal(numbers(pa.nulls(2), kind), [np.nan, np.nan])


def test_dictionary_encoded_numbers_are_read() -> None:
    np.testing.assert_array_equal(numbers(pa.array([7, None, 7, 3]).dictionary_encode()), [7, np.nan, 7, 3])


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Rome"])
def test_timestamps_are_days_since_1970_in_every_unit(unit: str, zone: str | None) -> None:
    values = [datetime(1970, 1, 2, 12, tzinfo=UTC), None, datetime(1969, 12, 31, tzinfo=UTC)]
    instants = pa.array(values, pa.timestamp(unit, tz="UTC")).cast(pa.timestamp(unit, tz=zone))
    np.testing.assert_array_equal(numbers(instants, "timestamp"), [1.5, np.nan, -1.0])


def test_dates_are_timestamps() -> None:
    assert numbers(pa.array([date(1970, 1, 11)]), "timestamp") == [10.0]


@pytest.mark.parametrize(
    ("array", "kind", "said"),
    [
        (pa.array(["1"]), "numeric", "feature 'f' is declared as numeric, but its values are string"),
        (pa.array([[1.0]]), "numeric", "declared as numeric, but its values are list<item: double>"),
        (pa.array([1]), "timestamp", "declared as timestamp, but its values are int64"),
        (pa.array(["2020-01-01"]), "timestamp", "declared as timestamp, but its values are string"),
    ],
)
def test_a_column_that_holds_no_numbers_is_refused(array: pa.Array, kind: Kind, said: str) -> None:
    with pytest.raises(SchemaError, match=said.replace("[", r"\[")):
        numbers(array, kind)


def test_a_missing_column_is_named_with_those_there_are() -> None:
    table = pa.table({"a": [1], "b": [2]})
    readers: list[Any] = [as_numbers, as_values, as_vectors]
    for read, kind in zip(readers, ("numeric", "text", "vector"), strict=True):
        with pytest.raises(SchemaError, match="there is no feature 'f'; the table has 'a', 'b'"):
            read(table, "f", FeatureDeclaration(kind, length=2))


# --- values


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_one_value_a_row_is_read_from_every_layout(kind: pa.DataType) -> None:
    for table in layouts(["b", None, "", "a b", LONG, "b"], kind):
        assert bags(table, "categorical") == [["b"], [], [], ["a b"], [LONG], ["b"]]


def test_numbers_and_truth_can_be_categories() -> None:
    assert bags(pa.table({"f": [1, None, -2]}), "categorical") == [["1"], [], ["-2"]]
    assert bags(pa.table({"f": [True, False]}), "categorical") == [["true"], ["false"]]
    # An integer column that came through pandas with a null.
    assert bags(pa.table({"f": [1.0, 2.5]}), "categorical") == [["1"], ["2.5"]]


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.dictionary(pa.int32(), pa.string()))],
)
def test_lists_are_read_from_every_layout(kind: pa.DataType) -> None:
    for table in layouts([["b", "a"], None, [], [None, "c", ""], ["d"]], kind):
        assert bags(table, "categories") == [["b", "a"], [], [], ["c"], ["d"]]


def test_lists_of_a_fixed_size_and_of_numbers_are_categories_too() -> None:
    for table in layouts([[1, 2], None, [3, None]], pa.list_(pa.int64(), 2)):
        assert bags(table, "categories") == [["1", "2"], [], ["3"]]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_a_separator_splits_literally_and_values_are_trimmed(kind: pa.DataType) -> None:
    for table in layouts(["a | b|", None, "||", "c", "a.b"], kind):
        assert bags(table, "categories", "|") == [["a", "b"], [], [], ["c"], ["a.b"]]
        assert bags(table, "categories") == [["a | b|"], [], ["||"], ["c"], ["a.b"]]
    assert bags(pa.table({"f": ["a.b"]}), "categories", ".") == [["a", "b"]]


def test_a_path_becomes_its_prefixes() -> None:
    paths = ["a|b|c", "a", None, " a | b ", "|a||b|", ""]
    wanted = [["a", "a|b", "a|b|c"], ["a"], [], ["a", "a|b"], ["a", "a|b"], []]
    for table in layouts(paths, pa.string()):
        assert bags(table, "category_path", "|") == wanted
    lists = [["a", "b", "c"], ["a"], None, ["a", "b"], ["", "a", None, "b"], []]
    for table in layouts(lists, pa.large_list(pa.string())):
        assert bags(table, "category_path") == wanted


def test_text_is_words_in_small_letters_of_any_script() -> None:
    words = bags(pa.table({"f": ["  The CAFÉ's 2nd-best!", None, "...", "视频 🎮 ΣΟΦΟΣ"]}), "text")
    assert words == [["the", "café", "s", "2nd", "best"], [], [], ["视频", "σοφοσ"]]


def test_text_does_not_depend_on_how_an_accent_is_stored_and_keeps_marks_in_their_words() -> None:
    composed, decomposed, full_width, hindi = "caf\u00e9", "cafe\u0301", "ＣＡＦÉ", "हिन्दी"
    words = bags(pa.table({"f": [composed, decomposed, full_width, hindi]}), "text")
    assert words == [["café"], ["café"], ["café"], ["हिन्दी"]]


@pytest.mark.parametrize(
    ("array", "kind", "said"),
    [
        (pa.array([["a"]]), "categorical", "declared as categorical, but its values are lists"),
        (pa.array([["a"]]), "text", "declared as text, but its values are lists"),
        (pa.array([{"a": 1}]), "categorical", "declared as categorical, but its values are struct"),
        (pa.array([[[1]]]), "categories", "declared as categories, but its values are list"),
        (pa.array([b"\xff"]), "text", "declared as text, but its values are binary"),
    ],
)
def test_a_column_that_holds_no_such_values_is_refused(array: pa.Array, kind: Kind, said: str) -> None:
    with pytest.raises(SchemaError, match=said):
        bags(pa.table({"f": array}), kind)


@pytest.mark.parametrize("kind", ["categorical", "categories", "category_path", "text"])
def test_an_empty_table_and_one_without_values_have_empty_bags(kind: Kind) -> None:
    assert bags(pa.table({"f": pa.array([], pa.string())}), kind, "|") == []
    assert bags(pa.table({"f": pa.chunked_array([], pa.string())}), kind, "|") == []
    assert bags(pa.table({"f": pa.nulls(2)}), kind, "|") == [[], []]
    assert bags(pa.table({"f": pa.array([None, ""], pa.string())}), kind, "|") == [[], []]


# --- hashed words


def test_a_word_is_itself_and_its_trigrams() -> None:
    def token(gram: str) -> int:
        return 10 + zlib.crc32(gram.encode()) % 1000

    counts, tokens = hash_words(np.array([1, 0, 2]), pa.array(["blue", "tea", "blue"]), 1000, 10)
    blue = sorted(token(gram) for gram in ("blue", "<bl", "blu", "lue", "ue>"))
    assert counts.tolist() == [5, 0, 6]
    assert tokens.tolist() == [*blue, token("tea"), *blue]
    assert tokens.dtype == np.int32


def test_no_words_have_no_tokens() -> None:
    counts, tokens = hash_words(np.array([0, 0], np.int32), pa.array([], pa.string()), 8, 1)
    assert counts.tolist() == [0, 0] and tokens.tolist() == []


# --- vectors


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float32()), pa.list_(pa.float64()), pa.large_list(pa.float64()), pa.list_(pa.float32(), 2)],
)
def test_vectors_are_read_from_every_layout_and_null_is_zero(kind: pa.DataType) -> None:
    values = [[1.0, 2.0], None, [float("nan"), 3.0], [float("inf"), None], [5.0, -6.0]]
    for table in layouts(values, kind):
        read = as_vectors(table, "f", FeatureDeclaration("vector", length=2))
        assert read.dtype == np.float32
        assert read.tolist() == [[1, 2], [0, 0], [0, 3], [0, 0], [5, -6]]


def test_vectors_of_integers_and_of_nothing_are_read() -> None:
    two = FeatureDeclaration("vector", length=2)
    assert as_vectors(pa.table({"f": [[1, 2]]}), "f", two).tolist() == [[1, 2]]
    assert as_vectors(pa.table({"f": pa.nulls(1)}), "f", two).tolist() == [[0, 0]]
    assert as_vectors(pa.table({"f": pa.array([], pa.list_(pa.float32()))}), "f", two).shape == (0, 2)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([[1.0, 2.0], [1.0]], "declared as a vector of 2, but one has 1 values"),
        ([[1.0, 2.0], []], "declared as a vector of 2, but one has 0 values"),
        ([["a", "b"]], "declared as vector, but its values are list<item: string>"),
        ([1.0], "declared as vector, but its values are double"),
    ],
)
def test_what_is_no_vector_of_the_length_is_refused(values: list[Any], said: str) -> None:
    with pytest.raises(SchemaError, match=said):
        as_vectors(pa.table({"f": values}), "f", FeatureDeclaration("vector", length=2))


# --- indices


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_the_index_of_a_value_is_its_place_and_minus_one_if_unknown(kind: pa.DataType) -> None:
    known = pa.array(["b", "ü", LONG])
    for table in layouts(["ü", None, "x", LONG, "b"], kind):
        assert index_of(table["f"], known).tolist() == [1, -1, -1, 2, 0]
    assert index_of(pa.array([], kind), known).tolist() == []
    assert index_of(pa.array(["a"]), pa.array([], pa.string())).tolist() == [-1]


def test_ragged_positions_run_through_each_row() -> None:
    assert ragged_positions(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    assert ragged_positions(np.zeros(0, np.int64), np.zeros(0, np.int64)).tolist() == []


def test_bags_of_several_fields_lie_row_by_row() -> None:
    """Row 0: field 0 has 1 2, field 1 nothing, field 2 has 7. Row 1: nothing, then 5, then 8 9."""
    fields = [
        (np.array([2, 0], np.int32), np.array([1, 2], np.int32)),
        (np.array([0, 1], np.int32), np.array([5], np.int32)),
        (np.array([1, 2], np.int32), np.array([7, 8, 9], np.int32)),
    ]
    tokens, counts = interleave(fields, 2)
    assert tokens.tolist() == [1, 2, 7, 5, 8, 9]
    assert counts.tolist() == [[2, 0, 1], [0, 1, 2]]
    tokens, counts = interleave(fields[:1], 2)
    assert (tokens.tolist(), counts.tolist()) == ([1, 2], [[2], [0]])
    tokens, counts = interleave([], 2)
    assert (tokens.shape, counts.shape) == ((0,), (2, 0))
