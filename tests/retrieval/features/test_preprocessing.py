"""What is fitted on features: statistics that add up, scales and vocabularies by hand, and the layout of tokens."""

import json
import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rec_ray.errors import BundleError, SchemaError
from rec_ray.retrieval.features.batch import FeatureShape
from rec_ray.retrieval.features.preprocessing import (
    CLIP,
    EncodedFeatures,
    FeaturePreprocessor,
    FeatureStatistics,
    Preprocessor,
    collect_statistics,
    fit_features,
)
from rec_ray.schema import FeatureDeclaration
from tests.retrieval.tensors import to_batch

DECLARATIONS = {
    "price": FeatureDeclaration("numeric"),
    "title": FeatureDeclaration("text"),
    "brand": FeatureDeclaration("categorical"),
    "since": FeatureDeclaration("timestamp"),
    "tags": FeatureDeclaration("categories", separator=","),
    "image": FeatureDeclaration("vector", length=2),
    "path": FeatureDeclaration("category_path", separator="/"),
}


def table(rows: int = 200, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)

    def some(values: list[Any]) -> list[Any]:
        return [None if rng.random() < 0.2 else values[rng.integers(len(values))] for _ in range(rows)]

    return pa.table(
        {
            "price": pa.array(some([1.0, 5.0, 1e9, float("nan"), float("inf")]), pa.float64()),
            "title": pa.array(some(["blue cup", "red cup of tea", "", "视频"]), pa.string()),
            "brand": pa.array(some(["acme", "ünder", "zeta"]), pa.string()),
            "since": pa.array(some([0, 86_400_000_000, 10**15]), pa.timestamp("us", "UTC")),
            "tags": pa.array(some(["a,b", "b", "c,,a", ","]), pa.string()),
            "image": pa.array(some([[1.0, 2.0], [0.5, -1.0]]), pa.list_(pa.float32())),
            "path": pa.array(some(["x/y/z", "x", "w/y"]), pa.string()),
        }
    )


def fit(data: pa.Table, declarations: dict[str, FeatureDeclaration], **options: int) -> FeaturePreprocessor:
    arguments = {"text_buckets": 16, "max_vocabulary": 100} | options
    return fit_features(collect_statistics(data, declarations), declarations, **arguments)


def fit_one(values: list[Any] | pa.Array, declaration: FeatureDeclaration, **options: int) -> FeaturePreprocessor:
    return fit(pa.table({"f": values}), {"f": declaration}, **options)


def bags(encoded: EncodedFeatures) -> list[list[list[int]]]:
    tokens = encoded.tokens.tolist()
    return [[[tokens.pop(0) for _ in range(count)] for count in row] for row in encoded.token_counts]


def assert_same(left: EncodedFeatures, right: EncodedFeatures) -> None:
    for name in ("numeric", "tokens", "token_counts", "vector"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))


# --- statistics


@pytest.mark.parametrize("cuts", [[0], [1, 2, 3], [50, 50, 199], [200]])
def test_statistics_of_blocks_add_up_to_those_of_the_whole(cuts: list[int]) -> None:
    whole = table()
    merged = FeatureStatistics()
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        merged = merged.merge(collect_statistics(whole.slice(start, end - start), DECLARATIONS))
    expected = collect_statistics(whole, DECLARATIONS)
    assert merged.rows == expected.rows == 200
    assert merged.counts == expected.counts
    assert merged.moments.keys() == expected.moments.keys() == {"price", "since"}
    for name in expected.moments:
        assert merged.moments[name][0] == expected.moments[name][0]
        np.testing.assert_allclose(merged.moments[name], expected.moments[name], rtol=1e-12)


def test_merging_leaves_both_sides_as_they_were() -> None:
    one, two = (collect_statistics(pa.table({"f": [v]}), {"f": FeatureDeclaration("categorical")}) for v in "ab")
    one.merge(two)
    assert one.counts == {"f": {"a": 1}} and two.counts == {"f": {"b": 1}}
    assert (one.rows, two.rows) == (1, 1)


def test_moments_are_of_the_finite_values() -> None:
    data = pa.table({"f": [1.0, None, 3.0, float("nan"), float("inf"), 8.0]})
    statistics = collect_statistics(data, {"f": FeatureDeclaration("numeric")})
    assert statistics.rows == 6
    assert statistics.moments["f"] == (3, 4.0, 9.0 + 1.0 + 16.0)


def test_moments_do_not_lose_digits_far_from_zero() -> None:
    values = 1e9 + np.arange(1000.0)
    merged = FeatureStatistics()
    for part in np.split(values, 10):
        merged = merged.merge(collect_statistics(pa.table({"f": part}), {"f": FeatureDeclaration("numeric")}))
    assert fit_features(merged, {"f": FeatureDeclaration("numeric")}, text_buckets=1, max_vocabulary=1).scales == {
        "f": (pytest.approx(values.mean(), rel=1e-15), pytest.approx(values.std(), rel=1e-9))
    }


def test_a_vector_of_another_length_is_refused_before_training() -> None:
    with pytest.raises(SchemaError, match="declared as a vector of 3, but one has 2 values"):
        collect_statistics(pa.table({"f": [[1.0, 2.0]]}), {"f": FeatureDeclaration("vector", length=3)})


# --- numbers


def test_a_number_becomes_its_standard_score_and_whether_it_was_missing() -> None:
    """Mean 4 and standard deviation 2: of 2, 2, 6, 6."""
    fitted = fit_one([2.0, 2.0, 6.0, 6.0, None], FeatureDeclaration("numeric"))
    assert fitted.scales == {"f": (4.0, 2.0)}
    encoded = fitted.encode(pa.table({"f": [4.0, 7.0, None, float("nan"), float("inf"), 1e30, -1e30]}))
    assert encoded.numeric.tolist() == [[0, 0], [1.5, 0], [0, 1], [0, 1], [0, 1], [CLIP, 0], [-CLIP, 0]]
    assert encoded.numeric.dtype == np.float32


@pytest.mark.parametrize("values", [[0.1] * 3, [1e15] * 3, [7.0]])
def test_a_constant_is_zero(values: list[float]) -> None:
    fitted = fit_one(values, FeatureDeclaration("numeric"))
    assert fitted.scales["f"][1] == 1.0
    np.testing.assert_allclose(fitted.encode(pa.table({"f": values})).numeric, 0, atol=1e-12)


def test_numbers_without_any_value_are_missing() -> None:
    for values in (pa.array([None, float("nan")], pa.float64()), pa.array([], pa.float64()), pa.nulls(2)):
        fitted = fit_one(values, FeatureDeclaration("numeric"))
        assert fitted.scales == {"f": (0.0, 1.0)}
        assert fitted.encode(pa.table({"f": values})).numeric.tolist() == [[0, 1]] * len(values)


def test_absurd_numbers_leave_the_scale_finite() -> None:
    fitted = fit_one([1.7e308, 1.6e308, 3e38, 1.0], FeatureDeclaration("numeric"))
    assert np.isfinite(fitted.scales["f"]).all()
    assert np.isfinite(fitted.encode(pa.table({"f": [1.7e308, 3e38, 1.0]})).numeric).all()


# --- tokens


def test_a_vocabulary_is_by_frequency_and_then_by_value_and_the_rest_is_unknown() -> None:
    values = ["b", "c", "a", "c", "d", None, ""]
    fitted = fit_one(values, FeatureDeclaration("categorical"), max_vocabulary=3)
    assert fitted.vocabularies == {"f": ("c", "a", "b")}
    assert fitted.shape == FeatureShape(fields=1, tokens=4)
    encoded = fitted.encode(pa.table({"f": ["a", "b", "c", "d", "new", None]}))
    assert bags(encoded) == [[[2]], [[3]], [[1]], [[0]], [[0]], [[]]]


def test_fields_have_their_own_tokens_and_text_comes_last() -> None:
    """Declared: title (text), brand (2 values), tags (3 values): brand 1..2, tags 3..5, title 6..9."""
    declarations = {
        "title": FeatureDeclaration("text"),
        "brand": FeatureDeclaration("categorical"),
        "tags": FeatureDeclaration("categories", separator=","),
        "words": FeatureDeclaration("text"),
    }
    data = pa.table(
        {
            "title": ["tea", None, "a tea"],
            "brand": ["x", "x", "y"],
            "tags": ["p,q,r", None, "q,p"],
            "words": [None, None, "tea"],
        }
    )
    fitted = fit(data, declarations, text_buckets=4)
    assert fitted.vocabularies == {"brand": ("x", "y"), "tags": ("p", "q", "r")}
    assert fitted.shape == FeatureShape(fields=4, tokens=1 + 2 + 3 + 4)
    rows = bags(fitted.encode(data))
    assert [row[1:3] for row in rows] == [[[1], [3, 4, 5]], [[1], []], [[2], [4, 3]]]
    tea = rows[0][0]
    assert len(tea) == 1 and 6 <= tea[0] <= 9
    # The same word has the same token in every text field.
    assert rows[1][0] == [] and rows[2][0][1:] == tea and rows[2][3] == tea
    # Another order of columns in the table changes nothing.
    assert_same(fitted.encode(data.select(["words", "tags", "brand", "title"])), fitted.encode(data))


def test_values_that_occur_twice_in_a_row_count_twice() -> None:
    fitted = fit_one([["a", "a"], ["b"]], FeatureDeclaration("categories"))
    assert bags(fitted.encode(pa.table({"f": [["b", "a", "a"], None, ["x"]]}))) == [[[2, 1, 1]], [[]], [[0]]]


def test_all_kinds_together_have_the_declared_shape() -> None:
    data = table()
    fitted = fit(data, DECLARATIONS)
    encoded = fitted.encode(data)
    shape = fitted.shape
    assert shape == FeatureShape(numeric=4, fields=4, tokens=1 + 3 + 3 + 5 + 16, vector=2)
    assert encoded.numeric.shape == (200, 4) and encoded.vector.shape == (200, 2)
    assert encoded.token_counts.shape == (200, 4)
    assert encoded.token_counts.sum() == len(encoded.tokens)
    assert encoded.tokens.min() > 0 and encoded.tokens.max() < shape.tokens
    batch = to_batch(encoded)
    assert len(batch) == 200
    np.testing.assert_array_equal(batch.tokens.numpy(), encoded.tokens)


def test_vectors_of_several_features_stand_side_by_side_and_null_is_zero() -> None:
    declarations = {name: FeatureDeclaration("vector", length=2) for name in ("a", "b")}
    data = pa.table({"b": [[5.0, 6.0], [7.0, 8.0]], "a": [[1.0, 2.0], None]})
    assert fit(data, declarations).encode(data).vector.tolist() == [[1, 2, 5, 6], [0, 0, 7, 8]]


def test_slices_and_chunks_encode_as_the_whole() -> None:
    data = table()
    fitted = fit(data, DECLARATIONS)
    whole = fitted.encode(data.combine_chunks())
    part = fitted.encode(data.slice(37, 60))
    np.testing.assert_array_equal(part.numeric, whole.numeric[37:97])
    np.testing.assert_array_equal(part.vector, whole.vector[37:97])
    assert bags(part) == bags(whole)[37:97]
    assert_same(fitted.encode(pa.concat_tables([data.slice(0, 37), data.slice(37, 60), data.slice(97)])), whole)


def test_an_empty_table_and_no_features_at_all() -> None:
    fitted = fit(table(), DECLARATIONS)
    empty = fitted.encode(table().slice(0, 0))
    assert (empty.numeric.shape, empty.tokens.shape, empty.token_counts.shape) == ((0, 4), (0,), (0, 4))
    assert len(to_batch(empty)) == 0
    nothing = fit(table(), {})
    assert nothing.shape.is_empty
    assert len(to_batch(nothing.encode(table()))) == 200


def test_fitting_on_an_empty_table_knows_no_value() -> None:
    fitted = fit(table().slice(0, 0), DECLARATIONS)
    encoded = fitted.encode(table())
    assert set(fitted.vocabularies.values()) == {()}
    assert encoded.tokens[encoded.tokens > 0].min() == 1  # only text has tokens of its own
    assert np.isfinite(encoded.numeric).all()


# --- what a bundle stores


def preprocessor(items: pa.Table, users: pa.Table) -> Preprocessor:
    return Preprocessor(
        users=fit(users, {name: DECLARATIONS[name] for name in ("brand", "since", "price")}),
        items=fit(items, DECLARATIONS),
        item_ids=("a", "ü" * 5000, "c"),
        event_types=("cart", "view"),
    )


def test_a_stored_preprocessor_encodes_identically() -> None:
    items, users = table(), table(seed=1)
    fitted = preprocessor(items, users)
    for again in (
        Preprocessor.from_dict(json.loads(json.dumps(fitted.to_dict(), allow_nan=False))),
        pickle.loads(pickle.dumps(fitted)),
    ):
        assert again.items.shape == fitted.items.shape and again.users.shape == fitted.users.shape
        assert_same(again.items.encode(items), fitted.items.encode(items))
        assert_same(again.users.encode(users), fitted.users.encode(users))
        assert again.items.names == list(DECLARATIONS)
        assert again.to_dict() == fitted.to_dict()


def test_ids_and_event_types_that_were_not_seen_are_zero() -> None:
    fitted = preprocessor(table(), table())
    assert fitted.vocabulary_size == 4
    assert fitted.encode_item_ids(pa.chunked_array([["c", "x"], ["ü" * 5000, "a"]])).tolist() == [3, 0, 2, 1]
    assert fitted.encode_event_types(pa.array(["view", None, "rate", "cart"])).tolist() == [2, 0, 0, 1]
    assert fitted.encode_event_types(pa.nulls(2)).tolist() == [0, 0]


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"users": None},
        {"users": []},
        {"users": {"declarations": []}},
        {"users": {"declarations": {"a": {"kind": "numeric", "unheard": 1}}}},
        {"users": {"declarations": {"a": {"kind": "vector"}}}},
        {
            "users": {
                "declarations": {"a": {"kind": "categorical"}},
                "scales": {},
                "vocabularies": {},
                "text_buckets": 1,
            }
        },
    ],
)
def test_a_stored_preprocessor_that_lacks_a_part_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="the stored preprocessor cannot be read"):
        Preprocessor.from_dict(broken)
