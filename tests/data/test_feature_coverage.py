"""Coverage of events by rows of users and items, worked out by hand and against one row at a time."""

import numpy as np
import pyarrow as pa

from rec_ray.data.feature_coverage import (
    Coverage,
    compare_features,
    cover_items,
    cover_users,
    describe_expired,
    describe_late,
    describe_unmatched,
)


def test_a_feature_is_late_when_most_rows_with_a_value_now_had_none_then() -> None:
    then = pa.table({"late": [None, None, 1.0, None], "sparse": [None, None, None, "x"], "nan": [1.0, 2.0, 3.0, 4.0]})
    now = pa.table({"late": [5.0, 5.0, 5.0, None], "sparse": [None, None, None, "y"], "nan": [float("nan")] * 4})
    coverage = compare_features(then, now, then.column_names)
    assert coverage.known_now == {"late": 3, "sparse": 1, "nan": 0}
    assert coverage.unknown_then == {"late": 2, "sparse": 0, "nan": 0}
    assert coverage.late() == {"late": 2 / 3}, "a feature that few users have at any time is not late"
    half = compare_features(then.slice(1, 2), now.slice(1, 2), ["late"])
    assert half.late() == {}, "half of the rows is not most of them"


def test_a_feature_is_expired_when_most_rows_with_a_value_then_have_none_now() -> None:
    """A view with a TTL: its rows were fresh at the events, and today they are too old."""
    then = pa.table({"age": [1.0, 2.0, 3.0, None], "city": ["x", None, "y", "z"]})
    now = pa.table({"age": [None, float("nan"), 3.0, 4.0], "city": ["x", None, "y", None]})
    coverage = compare_features(then, now, then.column_names)
    assert coverage.known_then == {"age": 3, "city": 3}
    assert coverage.unknown_now == {"age": 2, "city": 1}
    assert coverage.expired() == {"age": 2 / 3}
    assert coverage.merge(compare_features(now, now, ["age"])).expired() == {}, "2 of 5 rows are not most of them"
    (said,) = describe_expired("user", {"age": 2 / 3})
    for part in ("'age' (67%)", "unknown today", "lengthen the ttl", "features.user"):
        assert part in said
    assert describe_expired("user", {}) == []


def test_blocks_add_up_to_one_row_at_a_time() -> None:
    rng = np.random.default_rng(0)
    total, expected = Coverage(), {"known": 0, "unknown": 0}
    for _ in range(5):
        now, then = (pa.array(np.where(rng.random(40) < 0.5, None, 1.0), pa.float64()) for _ in range(2))
        total.merge(compare_features(pa.table({"f": then}), pa.table({"f": now}), ["f"]))
        for old, new in zip(then.to_pylist(), now.to_pylist(), strict=True):
            expected["known"] += new is not None
            expected["unknown"] += new is not None and old is None
    assert (total.rows, total.known_now["f"], total.unknown_then["f"]) == (200, expected["known"], expected["unknown"])


def test_users_of_events_are_matched_by_any_value_at_any_time() -> None:
    """User a has a value now, b had one at an event, c has none; d has one and no event."""
    rows = pa.table({"city": [None, "Rome", "Oslo", None, None, None, "Bern"]})
    coverage = cover_users(
        rows,
        events=np.array([0, 2, 4]),
        user=np.array([0, 1, 2]),
        now=np.array([1, 3, 5, 6]),
        user_ids=pa.array(["a", "b", "c", "d"]),
        fields=["city"],
    )
    assert (coverage.ids, coverage.unmatched, coverage.unmatched_id, coverage.idle_id) == (3, 1, "c", "d")
    assert (coverage.known_now["city"], coverage.unknown_then["city"]) == (1, 1)
    assert cover_users(rows.select([]), np.array([0]), np.array([0]), np.array([1]), pa.array(["a"]), []).ids == 0


def test_items_without_an_event_before_the_test_do_not_count() -> None:
    """A new item has its values late by nature."""
    block = pa.table({"item_id": ["old", "new"] * 2, "price": [1.0, None, 1.0, 2.0]})
    assert cover_items(block, pa.array(["old"]), "item_id", ["price"]).late() == {}
    assert cover_items(block, pa.array(["new"]), "item_id", ["price"]).late() == {"price": 1.0}


def test_sentences_have_both_remedies_and_an_id_of_each_side() -> None:
    said = describe_late("user", {"age": 1.0}, ["view 'users' has no row before 2026-01-01"])
    for part in ("'age' (100%)", "view 'users'", "features.user_history: as_of_now", "date their rows"):
        assert part in said
    coverage = Coverage()
    coverage.match_ids(pa.array(["007", "008", "9"]), pa.array(["7", "8", "9"]))
    said = describe_unmatched("user", coverage) or ""
    assert said.startswith("2 of 3 user ids in the events have nothing") and "'007'" in said and "'7'" in said
    coverage.match_ids(pa.array(["1"]), pa.array(["1"]))
    assert describe_unmatched("user", coverage) is None, "half of them match"
