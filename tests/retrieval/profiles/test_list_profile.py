"""Profiles of lists with known answers, and the checks that refuse lists of another kind."""

import numpy as np
import pyarrow as pa
import pytest

from rec_ray.retrieval.profiles.checks import PASSED
from rec_ray.retrieval.profiles.list_profile import ListProfile, compare_lists, gini, measure_churn, profile_lists


def profile(lists: list[list[int]], *, items: int = 100, k: int = 10) -> ListProfile:
    rows = pa.table(
        {
            "user_id": [f"u{number}" for number in range(len(lists))],
            "indices": pa.array(lists, pa.list_(pa.int32())),
        }
    )

    def name(part: pa.Table) -> pa.Table:
        ids = [[f"i{index}" for index in each] for each in part["indices"].to_pylist()]
        return part.append_column("item_ids", pa.array(ids, pa.list_(pa.string())))

    half = len(lists) // 2
    parts = [
        profile_lists(each, column="indices", k=k, name_items=name) for each in (rows.slice(0, half), rows.slice(half))
    ]
    found = parts[0].merge(parts[1]).finish(items)
    return ListProfile.from_json(found.to_json(), "memory")


def lists(users: int = 200, *, first: int = 0, spread: int = 100) -> list[list[int]]:
    return [[(first + user + place) % spread for place in range(10)] for user in range(users)]


def names_of(new: ListProfile, live: ListProfile) -> set[str]:
    return {each.name for each in compare_lists(new, live, loss=0.2) if each.verdict != PASSED}


@pytest.mark.parametrize(("counts", "expected"), [([5, 5, 5, 5], 0.0), ([0, 0, 0, 8], 0.75), ([0, 0], 0.0), ([3], 0.0)])
def test_the_gini_coefficient(counts: list[int], expected: float) -> None:
    assert gini(np.array(counts)) == pytest.approx(expected)


def test_counts_coverage_and_short_lists() -> None:
    found = profile([[0, 1, 2], [0, 1], [], list(range(12))], items=24, k=3)
    assert (found.users, found.empty, found.short, found.items) == (4, 1, 2, 24)
    assert found.coverage == pytest.approx(10 / 24, abs=1e-4), "the first ten places alone"


def test_the_same_lists_pass_and_have_no_churn() -> None:
    assert names_of(profile(lists()), profile(lists())) == set()
    assert measure_churn(profile(lists()), profile(lists())) == 0.0
    assert measure_churn(profile(lists(first=5)), profile(lists())) == 0.5


@pytest.mark.parametrize(
    ("new", "found"),
    [
        (lists(150), {"lists.users", "lists.users_kept"}),
        ([*lists(100), *[[]] * 100], {"lists.users", "lists.empty", "lists.short", "lists.users_kept"}),
        ([each[:5] for each in lists()], {"lists.short"}),
        (lists(spread=10), {"lists.coverage", "lists.concentration"}),
        (lists(first=50), {"lists.churn"}),
    ],
)
def test_other_lists_are_found(new: list[list[int]], found: set[str]) -> None:
    assert found <= names_of(profile(new), profile(lists()))


def test_the_churn_of_the_version_before_counts_as_usual() -> None:
    live = profile(lists())
    live.churn = 0.9
    assert "lists.churn" not in names_of(profile(lists(first=50)), live)
    live.churn = 0.1
    assert "lists.churn" in names_of(profile(lists(first=5)), live)


def test_a_forgotten_user_leaves_the_sample() -> None:
    found = profile(lists(50))
    assert len(found.without(pa.array(["u7"])).top) == 49
