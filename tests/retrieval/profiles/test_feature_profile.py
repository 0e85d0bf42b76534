"""Profiles of features with known answers: bins, shares of missing values, and the stability index."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from rec_ray.retrieval.profiles.feature_profile import (
    FeatureProfile,
    index_of_counts,
    number_bins,
    profile_feature,
    stability_index,
)
from rec_ray.schema import FeatureDeclaration

NUMERIC, WORD = FeatureDeclaration("numeric"), FeatureDeclaration("categorical")


def profile(values: object, declaration: FeatureDeclaration = NUMERIC) -> FeatureProfile:
    return profile_feature(pa.table({"x": values}), "x", declaration, day=100.0)


def test_bins_grow_with_the_numbers_and_keep_their_sign() -> None:
    numbers = np.array([-8.0, -1.0, 0.0, 1e-30, 1.0, 1.09, 1.1, 2.0, 1e30])
    bins = number_bins(numbers)
    assert (np.diff(bins) >= 0).all()
    assert bins[2] == 0 and bins[4] == -bins[1]
    assert bins[4] == bins[5] != bins[6], "eight bins between 1 and 2"
    assert bins[7] - bins[4] == 8


def test_missing_values_are_counted_for_each_kind() -> None:
    assert profile(pa.array([1.0, None, float("nan")])).null_share == pytest.approx(2 / 3)
    assert profile(pa.array(["a", None, ""]), WORD).nulls == 2
    assert profile(pa.array(["", None, "long text"]), FeatureDeclaration("text")).nulls == 2
    lists = pa.array([["a", "b"], [], None], pa.list_(pa.string()))
    assert profile(lists, FeatureDeclaration("categories")).nulls == 2
    vectors = pa.array([[0.0, 0.0], [3.0, 4.0]], pa.list_(pa.float32()))
    assert profile(vectors, FeatureDeclaration("vector", length=2)).bins == {int(number_bins(np.array([5.0]))[0]): 1}


def test_a_timestamp_counts_by_its_age_so_that_a_day_later_is_no_shift() -> None:
    days = np.array([10.0, 50.0, 90.0])
    values = pa.array((days * 86_400e6).astype(np.int64), pa.timestamp("us", "UTC"))
    declaration = FeatureDeclaration("timestamp")
    found = profile_feature(pa.table({"x": values}), "x", declaration, day=100.0)
    assert found.bins == Counter(number_bins(100.0 - days).tolist())


def test_blocks_add_up_to_the_profile_of_the_whole() -> None:
    values = np.random.default_rng(0).normal(5, 2, 1000)
    parts = [profile(pa.array(part)) for part in np.array_split(values, 3)]
    assert parts[0].merge(parts[1]).merge(parts[2]) == profile(pa.array(values))


def test_the_index_is_that_of_the_formula_less_its_noise() -> None:
    after, before = np.array([300.0, 100.0]), np.array([100.0, 300.0])
    new, old = (after + 0.5) / 401, (before + 0.5) / 401
    expected = ((new - old) * np.log(new / old)).sum() - 2 / 401
    assert index_of_counts(after, before) == pytest.approx(expected)
    assert index_of_counts(before, before) == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_two_samples_of_one_distribution_differ_by_little(seed: int) -> None:
    random = np.random.default_rng(seed)
    for values in (random.lognormal(3, 1, 2000), random.choice(list("abcdefghijklmnopq"), 2000)):
        declaration = NUMERIC if values.dtype.kind == "f" else WORD
        half = [profile(pa.array(part), declaration) for part in (values[:1000], values[1000:])]
        assert stability_index(half[1], half[0]) < 0.1


@pytest.mark.parametrize(("factor", "shifted"), [(1.0, False), (100.0, True), (0.5, True)])
def test_another_unit_is_a_shift(factor: float, shifted: bool) -> None:
    values = np.random.default_rng(1).lognormal(3, 0.5, 1000)
    index = stability_index(profile(pa.array(values * factor)), profile(pa.array(values)))
    assert (index > 0.25) == shifted


def test_other_values_are_a_shift_and_few_rows_are_none() -> None:
    old, new = profile(pa.array(["a", "b"] * 50), WORD), profile(pa.array(["x", "y"] * 50), WORD)
    assert stability_index(new, old) > 1
    assert stability_index(profile(pa.array(["x"] * 40), WORD), old) == 0.0
