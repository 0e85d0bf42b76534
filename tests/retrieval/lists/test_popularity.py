"""Who is unknown, and what is popular in a segment, on timelines written by hand."""

import numpy as np
import pyarrow as pa
import pytest

from rec_ray.retrieval.features.batch import FeatureShape
from rec_ray.retrieval.features.preprocessing import FeaturePreprocessor
from rec_ray.retrieval.features.timelines import TIMELINES, Timelines
from rec_ray.retrieval.lists import popularity as popular_items
from rec_ray.retrieval.lists.popularity import SegmentPopularity, add_counts, count_by_segment, unknown_users
from rec_ray.schema import FeatureDeclaration

FEATURES = FeaturePreprocessor(
    {
        "country": FeatureDeclaration("categorical"),
        "age": FeatureDeclaration("numeric"),
        "likes": FeatureDeclaration("categories"),
    },
    {"age": (0.0, 1.0)},
    {"country": ("DE", "US"), "likes": ("red",)},
)
KNOWN, NOTHING = ([1.5, 0.0], [], [0, 0]), ([0.0, 1.0], [], [0, 0])
COUNTRY, LIKES = ([0.0, 1.0], [1], [1, 0]), ([0.0, 1.0], [0], [0, 1])
"""Feature rows: numbers with the flag of a missing one, tokens, and counts of tokens by field."""


def timelines_of(*users):
    """users: (items, weights, feature rows as of the validation, the test and now)."""
    rows = []
    for number, (items, weights, states) in enumerate(users):
        rows.append(
            {
                "user_id": f"u{number}",
                "item_index": items,
                "event_type": [1] * len(items),
                "event_seconds": list(range(len(items))),
                "weight": weights,
                "split": [0] * len(items),
                "feature_row": [0] * len(items) + [0, 1, 2],
                "user_numeric": [value for state in states for value in state[0]],
                "user_tokens": [token for state in states for token in state[1]],
                "user_token_counts": [count for state in states for count in state[2]],
                "user_vector": [],
            }
        )
    return Timelines.from_table(pa.Table.from_pylist(rows, schema=TIMELINES), FEATURES.shape)


def test_unknown_is_who_has_neither_an_event_nor_a_feature_now():
    assert FEATURES.shape == FeatureShape(numeric=2, fields=2, tokens=4, vector=0)
    timelines = timelines_of(
        ([], [], [NOTHING, NOTHING, NOTHING]),
        ([1], [0.0], [NOTHING, NOTHING, NOTHING]),
        ([], [], [NOTHING, NOTHING, KNOWN]),
        ([], [], [KNOWN, KNOWN, NOTHING]),
        ([], [], [NOTHING, NOTHING, COUNTRY]),
        ([], [], [NOTHING, NOTHING, LIKES]),
    )
    assert unknown_users(timelines, FEATURES).tolist() == [True, False, False, True, False, False]
    found = unknown_users(timelines, FEATURES, "country").tolist()
    assert found == [True, False, False, True, True, False], "the segment alone makes nobody known"


def test_positives_are_counted_by_segment_and_add_up_over_blocks():
    states = [NOTHING, NOTHING, NOTHING]
    one = count_by_segment(
        timelines_of(([1, 2, 1], [1.0, 2.0, 0.0], states), ([2], [1.0], states), ([3], [1.0], states)),
        pa.array(["A", "A", None]),
    )
    two = count_by_segment(timelines_of(([2, 3], [1.0, 1.0], states)), pa.array(["B"]))
    rows = add_counts(one, two, one.slice(0, 0)).to_pylist()
    assert {(row["segment"], row["item_index"]): row["positives"] for row in rows} == {
        ("A", 1): 1,
        ("A", 2): 2,
        ("B", 2): 1,
        ("B", 3): 1,
    }


@pytest.mark.parametrize("most", [100, 1])
def test_scores_are_shares_in_the_segment_or_of_all(most, monkeypatch):
    monkeypatch.setattr(popular_items, "MOST_SEGMENTS", most)
    counts = pa.table(
        {"segment": ["A", "A", "B", "B"], "item_index": pa.array([1, 2, 2, 3], pa.int32()), "positives": [1, 3, 1, 1]}
    )
    popularity = SegmentPopularity.of(np.array([2, 6, 2, 0]), counts)
    scores = popularity.queries(pa.array(["A", "B", None, "C"])) @ popularity.matrix.T
    overall = [0.2, 0.6, 0.2, 0.0]
    in_b = [0, 0.5, 0.5, 0] if most == 100 else overall
    assert np.allclose(scores, [[0.25, 0.75, 0, 0], in_b, overall, overall])


def test_without_segments_it_is_what_all_like_and_without_events_nothing():
    popularity = SegmentPopularity.of(np.array([1, 3]))
    assert (popularity.queries(pa.nulls(2, pa.string())) @ popularity.matrix.T).tolist() == [[0.25, 0.75]] * 2
    assert SegmentPopularity.of(np.zeros(2)).matrix.tolist() == [[0.0], [0.0]]
