"""Tables at a border: which types pass for a declared one, and what is said of those that do not."""

import pyarrow as pa
import pytest

from rec_ray.errors import SchemaError
from rec_ray.schema import INTERACTIONS, RECOMMENDATIONS, TIMESTAMP, FeatureDeclaration, require_columns


def recommendations(**other: pa.DataType) -> pa.Schema:
    types = {field.name: field.type for field in RECOMMENDATIONS} | other
    return pa.schema(list(types.items()))


def test_further_columns_order_and_nullability_do_not_matter() -> None:
    schema = pa.schema([("more", pa.int8()), *reversed(list(INTERACTIONS))])
    require_columns(schema, INTERACTIONS, what="events")
    require_columns(schema.empty_table(), INTERACTIONS, what="events")


@pytest.mark.parametrize(
    "other",
    [
        {"user_id": pa.large_string()},
        {"item_ids": pa.large_list(pa.large_string())},
        {"item_ids": pa.list_(pa.field("element", pa.string()))},
        {"scores": pa.large_list(pa.float32())},
    ],
)
def test_the_size_of_offsets_and_the_name_of_elements_do_not_matter(other: dict[str, pa.DataType]) -> None:
    require_columns(recommendations(**other), RECOMMENDATIONS, what="recommendations")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"user_id": pa.int64()}, "recommendations has column 'user_id' of type int64; expected string"),
        ({"user_id": pa.binary()}, "'user_id' of type binary"),
        ({"item_ids": pa.string()}, "'item_ids' of type string; expected list<item: string>"),
        ({"item_ids": pa.list_(pa.int64())}, "'item_ids' of type list<item: int64>"),
        ({"scores": pa.list_(pa.float64())}, "'scores' of type list<item: double>; expected list<item: float>"),
    ],
)
def test_another_type_is_named_beside_the_expected_one(other: dict[str, pa.DataType], said: str) -> None:
    with pytest.raises(SchemaError) as refused:
        require_columns(recommendations(**other), RECOMMENDATIONS, what="recommendations")
    assert said in str(refused.value)
    assert refused.value.exit_code == 4


@pytest.mark.parametrize(
    "kind", [pa.timestamp("us"), pa.timestamp("ns", tz="UTC"), pa.timestamp("us", tz="Europe/Rome")]
)
def test_a_time_is_in_microseconds_and_utc(kind: pa.DataType) -> None:
    events = pa.schema([pa.field(f.name, kind if f.type == TIMESTAMP else f.type) for f in INTERACTIONS])
    with pytest.raises(SchemaError, match=r"'event_timestamp' of type timestamp.*expected timestamp\[us, tz=UTC\]"):
        require_columns(events, INTERACTIONS, what="events")


def test_missing_columns_are_all_named() -> None:
    with pytest.raises(SchemaError) as refused:
        require_columns(pa.schema([("user_id", pa.string())]), RECOMMENDATIONS, what="the list")
    assert str(refused.value) == "the list lacks the columns 'item_ids', 'scores', 'method'; it has 'user_id'"


@pytest.mark.parametrize("length", [None, 0, -1])
def test_a_vector_without_a_length_is_refused(length: int | None) -> None:
    with pytest.raises(ValueError, match="a vector needs its length"):
        FeatureDeclaration("vector", length=length)


def test_an_empty_separator_is_refused() -> None:
    with pytest.raises(ValueError, match="separator is empty"):
        FeatureDeclaration("categories", separator="")
