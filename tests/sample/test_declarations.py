"""Columns are declared as a person would, and what is left out is said."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from rec_ray.sample.declarations import declare_features, declare_interactions, name_of_items
from rec_ray.sample.tables import write_batches
from rec_ray.schema import TIMESTAMP, FeatureDeclaration

N = 200
WORDS = ["red", "blue", "soft", "warm", "light", "strong", "old", "new", "big", "small"]


def written(tmp_path, name="items", **columns):
    times = pa.array([datetime(2024, 1, 1, tzinfo=UTC)] * N, TIMESTAMP)
    table = pa.table({f"{name[:-1]}_id": [str(i) for i in range(N)], "event_timestamp": times, **columns})
    return write_batches(name, [table], tmp_path / f"{name}.parquet")


CASES = {
    "price": ([i * 0.5 for i in range(N)], FeatureDeclaration("numeric")),
    "stock": (list(range(N)), FeatureDeclaration("numeric")),
    "in_sale": ([i % 3 == 0 for i in range(N)], FeatureDeclaration("categorical")),
    "since": (
        [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(days=i) for i in range(N)],
        FeatureDeclaration("timestamp"),
    ),
    "brand": ([f"brand {i % 9}" for i in range(N)], FeatureDeclaration("categorical")),
    "maker": ([f"m{i % 90}" for i in range(N)], FeatureDeclaration("categorical")),
    "supplier_id": ([i % 7 for i in range(N)], FeatureDeclaration("categorical")),
    "tags": ([[WORDS[i % 10]] for i in range(N)], FeatureDeclaration("categories")),
    "look": ([[float(i), 1.0, 2.0] for i in range(N)], FeatureDeclaration("vector", length=3)),
    "ragged": ([[1.0] * (1 + i % 2) for i in range(N)], None),
    "category": ([f"Top{i % 3}|Sub{i % 12}" for i in range(N)], FeatureDeclaration("category_path", separator="|")),
    "place": ([f"T{i % 3}|S{i % 12}|L{i % 48}" for i in range(N)], FeatureDeclaration("category_path", separator="|")),
    "likes": (
        ["|".join(WORDS[(i * k + k) % 10] for k in range(1, 2 + i % 3)) for i in range(N)],
        FeatureDeclaration("categories", separator="|"),
    ),
    "title": ([f"{WORDS[i % 10]} {WORDS[i // 10 % 10]} shirt {i}" for i in range(N)], FeatureDeclaration("text")),
    "about": (
        [f"A {WORDS[i % 10]} thing | made for people who want number {i} and nothing but that" for i in range(N)],
        FeatureDeclaration("text"),
    ),
    "sku": ([f"SKU-{i:05d}" for i in range(N)], None),
    "page": ([f"https://shop.example/{i}" for i in range(N)], None),
    "picture": ([f"/images/item%20{i}.png" for i in range(N)], None),
    "file": ([f"item{i}.JPG" for i in range(N)], None),
    "shop": (["ours"] * N, None),
    "empty": (pa.nulls(N, pa.string()), None),
    "member": ([None if i % 2 else "yes" for i in range(N)], FeatureDeclaration("categorical")),
}


def test_columns_are_declared_by_type_and_values(tmp_path):
    columns = {name: pa.array(values) if isinstance(values, list) else values for name, (values, _) in CASES.items()}
    declared = declare_features(written(tmp_path, **columns))
    wrong = {n: declared.features.get(n) for n, (_, e) in CASES.items() if declared.features.get(n) != e}
    assert wrong == {}
    assert len(declared.notes) == len(CASES)
    assert "page: left out, links" in declared.notes and "shop: left out, constant" in declared.notes


def test_quotes_and_unicode_in_column_names(tmp_path):
    declared = declare_features(written(tmp_path, **{'we"ird': list(range(N)), "größe, cm": list(range(N))}))
    assert set(declared.features) == {'we"ird', "größe, cm"}


def test_types_and_ratings_of_events(tmp_path):
    kinds = ["view", "negative_view", "Negative feedback", "view", None]
    table = pa.table({"interaction_type": kinds, "rating": [1.0, None, None, 5.0, 3.0]})
    settings, notes = declare_interactions(write_batches("interactions", [table], tmp_path / "t.parquet"))
    assert settings == {
        "type_field": "interaction_type",
        "value_field": "rating",
        "min_positive_value": 3.0,
        "negative_types": ["Negative feedback", "negative_view"],
    }
    assert notes["value_field"].startswith("rating 1 to 5, a rating of 1 to 5: weight = value / 5; below 3 counts as")
    assert "view 2" in notes["type_field"]


def test_events_without_type_and_rating(tmp_path):
    table = pa.table({"rating": ["good"]})
    settings, _ = declare_interactions(write_batches("interactions", [table], tmp_path / "t.parquet"))
    assert settings == {"type_field": None, "value_field": None, "negative_types": []}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [(["title", "product_name"], "product_name"), (["title"], "title"), (["colour"], None)],
)
def test_the_name_of_items(tmp_path, columns, expected):
    assert name_of_items(written(tmp_path, **{name: ["x"] * N for name in columns})) == expected


def test_types_that_sound_negative_and_values_below_zero_are_negative(tmp_path):
    kinds = ["buy", "Dislike", "remove_from_cart", "refunded", "buy"]
    table = pa.table({"kind": kinds, "liked": [1, -1, 1, 1, 1]})
    written = write_batches("interactions", [table], tmp_path / "t.parquet")
    settings, notes = declare_interactions(written, "kind", "liked")
    assert settings == {
        "type_field": "kind",
        "value_field": "liked",
        "min_positive_value": None,
        "negative_types": ["Dislike", "refunded", "remove_from_cart"],
    }
    assert "values at or below 0 count as negative (20% of 5 values)" in notes["value_field"]


def test_values_that_are_none_are_used_only_if_a_person_named_the_column(tmp_path):
    table = pa.table({"spent": [1.0] * 50 + [1e6]})
    written = write_batches("interactions", [table], tmp_path / "t.parquet")
    settings, notes = declare_interactions(written, None, "spent")
    assert settings["value_field"] is None and "not used" in notes["value_field"]
    settings, notes = declare_interactions(written, None, "spent", use_value=True)
    assert settings["value_field"] == "spent" and notes["value_field"].endswith("It is used anyway.")


def test_what_is_another_value_in_every_row_is_no_feature(tmp_path):
    """Counted, not estimated: an estimate of 170 would make 200 different values a category."""
    columns = {
        "email": [f"u{i}@shop.example" for i in range(N)],
        "barcode": [4_000_000_000_000 + i for i in range(N)],
        "paths": [f"a{i}|b{i}" for i in range(N)],
        "plz": [10_000 + i % 30 for i in range(N)],
    }
    declared = declare_features(written(tmp_path, **columns))
    assert declared.features == {"plz": FeatureDeclaration("categorical")}
    assert {decision.column: decision.role for decision in declared.decisions} == {
        "email": "left out",
        "barcode": "left out",
        "paths": "left out",
        "plz": "categorical",
    }
