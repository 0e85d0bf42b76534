"""Timelines cut into stretches and padded: each event is predicted once, from what was known before it."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from rec_ray.retrieval.features.batch import FeatureShape
from rec_ray.retrieval.features.timelines import (
    QUERIES,
    TIMELINES,
    TimelineBatch,
    Timelines,
    query_batch,
    training_batch,
    training_windows,
)
from rec_ray.schema import Split

TRAIN, VALIDATION, TEST = Split

SHAPE = FeatureShape(numeric=2, fields=1, tokens=9, vector=1)
EVERYTHING = TEST + 1


def user_row(
    name: str,
    splits: list[int],
    *,
    first_item: int = 1,
    weights: list[float] | None = None,
    feature_row: list[int] | None = None,
    seconds: list[int] | None = None,
) -> dict[str, Any]:
    """A user with one event for each split; item first_item + i, type i % 3, and features that name user and row."""
    n = len(splits)
    rows = feature_row if feature_row is not None else [0] * (n + QUERIES)
    distinct = max(rows) + 1
    return {
        "user_id": name,
        "item_index": list(range(first_item, first_item + n)),
        "event_type": [i % 3 for i in range(n)],
        "event_seconds": seconds or [1000 * first_item + i * i for i in range(n)],
        "weight": weights or [1.0] * n,
        "split": splits,
        "feature_row": rows,
        "user_numeric": [value for row in range(distinct) for value in (first_item, row)],
        "user_tokens": [row for row in range(distinct) for _ in range(row)],
        "user_token_counts": list(range(distinct)),
        "user_vector": [first_item + row / 10 for row in range(distinct)],
    }


def timelines_of(*users: dict[str, Any]) -> Timelines:
    return Timelines.from_table(pa.Table.from_pylist(list(users), schema=TIMELINES), SHAPE)


def features_at(batch: TimelineBatch, row: int, position: int) -> list[float]:
    """User and own feature row, from the numeric features."""
    return batch.user_features.numeric[batch.feature_row[row, position]].tolist()


def pairs(timelines: Timelines, history_length: int, below: int = EVERYTHING) -> list[tuple[int, list[int], int]]:
    """All (user, history, target) that training sees, with the history as item indices."""
    windows = training_windows(timelines, history_length, below)
    if not len(windows):
        return []
    batch = training_batch(timelines, windows, np.arange(len(windows)))
    seen = []
    for row, position in batch.weight.nonzero().tolist():
        assert position <= int(batch.length[row])
        history = batch.item_index[row, :position].tolist()
        seen.append((int(windows.user[row]), history, int(batch.target[row, position])))
    return seen


# --- reading


THREE = (
    user_row("a", [TRAIN, TRAIN, VALIDATION, TEST], feature_row=[0, 0, 1, 1, 0, 1, 2]),
    user_row("b", [], first_item=50),
    user_row("ü", [TRAIN], first_item=70, feature_row=[0, 1, 1, 1]),
)


def assert_three(timelines: Timelines) -> None:
    assert len(timelines) == 3
    assert timelines.user_ids.to_pylist() == ["a", "b", "ü"]
    assert timelines.first.tolist() == [0, 4, 4, 5]
    assert timelines.item_index.tolist() == [1, 2, 3, 4, 70]
    assert timelines.feature_row.tolist() == [0, 0, 1, 1, 0, 1, 2, 3, 3, 3, 4, 5, 5, 5]
    assert timelines.user_features.numeric.tolist() == [[1, 0], [1, 1], [1, 2], [50, 0], [70, 0], [70, 1]]
    assert timelines.user_features.token_counts[:, 0].tolist() == [0, 1, 2, 0, 0, 1]
    assert timelines.user_features.tokens.tolist() == [1, 2, 2, 1]
    assert [timelines.query_row(query).tolist() for query in range(3)] == [[0, 3, 5], [1, 3, 5], [2, 3, 5]]


def test_a_table_is_read_whole_in_chunks_and_as_a_slice() -> None:
    table = pa.Table.from_pylist(list(THREE), schema=TIMELINES)
    other = pa.Table.from_pylist([user_row("x", [TRAIN] * 7, first_item=9, feature_row=[1, 0] * 5)], schema=TIMELINES)
    assert_three(Timelines.from_table(table, SHAPE))
    assert_three(Timelines.from_table(pa.concat_tables([table.slice(0, 1), other.slice(0, 0), table.slice(1)]), SHAPE))
    assert_three(Timelines.from_table(pa.concat_tables([other, table, other]).slice(1, 3), SHAPE))
    assert_three(Timelines.from_table(pa.concat_tables([other, table, other]).combine_chunks().slice(1, 3), SHAPE))


def test_large_lists_and_strings_are_read_too() -> None:
    large = pa.schema(
        [
            pa.field(f.name, pa.large_list(f.type.value_type) if pa.types.is_list(f.type) else pa.large_string())
            for f in TIMELINES
        ]
    )
    assert_three(Timelines.from_table(pa.Table.from_pylist(list(THREE), schema=TIMELINES).cast(large), SHAPE))


def test_no_users() -> None:
    timelines = timelines_of()
    assert len(timelines) == 0
    assert len(training_windows(timelines, 5, EVERYTHING)) == 0
    assert timelines.query_row(0).tolist() == []
    assert timelines.positives(TEST)[1].tolist() == [0]
    batch = query_batch(timelines, np.zeros(0, np.int64), split=TEST, query=1, history_length=5)
    assert batch.item_index.shape == (0, 0)


def test_positives_and_earlier_events_by_hand() -> None:
    timelines = timelines_of(
        user_row("a", [TRAIN, TRAIN, VALIDATION, TEST, TEST], weights=[1, 0, 2, 0, 1]),
        user_row("b", []),
        user_row("c", [TEST], first_item=8),
    )
    assert [part.tolist() for part in timelines.events_before(VALIDATION)] == [[0, 5, 5], [2, 0, 0]]
    assert [part.tolist() for part in timelines.events_before(TEST)] == [[0, 5, 5], [3, 0, 0]]
    assert [part.tolist() for part in timelines.events_before(EVERYTHING)] == [[0, 5, 5], [5, 0, 1]]
    assert [part.tolist() for part in timelines.positives(TRAIN)] == [[1], [0, 1, 1, 1]]
    assert [part.tolist() for part in timelines.positives(VALIDATION)] == [[3], [0, 1, 1, 1]]
    assert [part.tolist() for part in timelines.positives(TEST)] == [[5, 8], [0, 1, 1, 2]]


# --- training


def test_a_short_timeline_is_one_stretch_in_which_each_event_is_predicted_from_those_before() -> None:
    assert pairs(timelines_of(user_row("a", [TRAIN] * 3)), 5) == [(0, [], 1), (0, [1], 2), (0, [1, 2], 3)]


def test_one_event_is_predicted_from_nothing_and_no_event_is_no_stretch() -> None:
    timelines = timelines_of(user_row("a", []), user_row("b", [TRAIN], first_item=4), user_row("c", []))
    assert pairs(timelines, 5) == [(1, [], 4)]
    windows = training_windows(timelines, 5, EVERYTHING)
    batch = training_batch(timelines, windows, np.array([0]))
    assert batch.item_index.shape == (1, 0) and batch.gap_seconds.shape == (1, 0)
    assert batch.target.tolist() == [[4]] and batch.length.tolist() == [0]


def test_a_long_timeline_by_hand() -> None:
    """8 events, 4 of history: 5 events (4 known, 1 predicted), then 2 new ones behind 3 old, then the last."""
    timelines = timelines_of(user_row("a", [TRAIN] * 8))
    windows = training_windows(timelines, 4, EVERYTHING)
    assert windows.start.tolist() == [0, 2, 3]
    assert windows.events.tolist() == [5, 5, 5]
    assert windows.stale.tolist() == [0, 3, 4]
    assert pairs(timelines, 4)[4:] == [
        (0, [1, 2, 3, 4], 5),
        (0, [3, 4, 5], 6),
        (0, [3, 4, 5, 6], 7),
        (0, [4, 5, 6, 7], 8),
    ]


@pytest.mark.parametrize("history_length", [1, 2, 3, 4, 7, 50])
def test_each_event_is_predicted_once_from_at_most_the_history_that_a_query_has(history_length: int) -> None:
    lengths = [*range(12), 1, 40]
    timelines = timelines_of(*(user_row(str(i), [TRAIN] * n, first_item=100 * i + 1) for i, n in enumerate(lengths)))
    seen = pairs(timelines, history_length)
    wanted = [(i, 100 * i + 1 + e) for i, n in enumerate(lengths) for e in range(n)]
    assert sorted((user, target) for user, _, target in seen) == wanted
    for user, history, target in seen:
        before = list(range(100 * user + 1, target))
        assert len(history) <= history_length
        assert history == before[len(before) - len(history) :]
        # At least half of the history is there where the timeline has it.
        assert len(history) >= min(len(before), history_length - max(1, history_length // 2) + 1)
    longest = max(len(history) for _, history, _ in seen)
    query = query_batch(timelines, np.arange(len(lengths)), split=EVERYTHING, query=2, history_length=history_length)
    assert longest == min(history_length, max(lengths) - 1)
    assert int(query.length.max()) == min(history_length, max(lengths))


def test_events_of_a_later_split_are_neither_seen_nor_predicted() -> None:
    timelines = timelines_of(
        user_row("a", [TRAIN, TRAIN, VALIDATION, TEST]), user_row("b", [VALIDATION, TEST], first_item=9)
    )
    assert pairs(timelines, 5, VALIDATION) == [(0, [], 1), (0, [1], 2)]
    assert pairs(timelines, 5, TEST) == [(0, [], 1), (0, [1], 2), (0, [1, 2], 3), (1, [], 9)]


def test_what_is_no_positive_is_history_but_no_target() -> None:
    timelines = timelines_of(user_row("a", [TRAIN] * 4, weights=[1.0, 0.0, 0.5, 0.0]))
    assert pairs(timelines, 5) == [(0, [], 1), (0, [1, 2], 3)]
    windows = training_windows(timelines, 5, EVERYTHING)
    batch = training_batch(timelines, windows, np.array([0]))
    assert batch.weight.tolist() == [[1.0, 0.0, 0.5, 0.0]]
    assert batch.target.tolist() == [[1, 0, 3, 0]]


def test_stretches_without_a_positive_are_left_out() -> None:
    weights = [1.0] + [0.0] * 20 + [1.0]
    timelines = timelines_of(user_row("a", [TRAIN] * 22, weights=weights), user_row("b", [TRAIN], weights=[0.0]))
    windows = training_windows(timelines, 4, EVERYTHING)
    assert windows.user.tolist() == [0, 0]
    assert [(history, target) for _, history, target in pairs(timelines, 4)] == [([], 1), ([18, 19, 20, 21], 22)]


def test_padding_types_gaps_and_features_of_a_training_batch() -> None:
    """Features as of each predicted event, of the own user, also when stretches of several users are mixed."""
    timelines = timelines_of(
        user_row("a", [TRAIN] * 4, first_item=1, seconds=[10, 13, 13, 20], feature_row=[0, 1, 1, 2, 0, 0, 3]),
        user_row("b", []),
        user_row("c", [TRAIN] * 2, first_item=30, seconds=[-5, 0], feature_row=[1, 0, 0, 0, 2]),
    )
    windows = training_windows(timelines, 5, EVERYTHING)
    batch = training_batch(timelines, windows, np.array([1, 0]))
    assert batch.length.tolist() == [1, 3]
    assert batch.item_index.tolist() == [[30, 0, 0], [1, 2, 3]]
    assert batch.event_type.tolist() == [[0, 0, 0], [0, 1, 2]]
    assert batch.gap_seconds.tolist() == [[0, 0, 0], [0, 3, 0]]
    assert batch.target.tolist() == [[30, 31, 0, 0], [1, 2, 3, 4]]
    assert batch.weight.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert [features_at(batch, 0, t) for t in range(2)] == [[30, 1], [30, 0]]
    assert [features_at(batch, 1, t) for t in range(4)] == [[1, 0], [1, 1], [1, 1], [1, 2]]
    assert batch.gap_seconds.dtype == torch.float32 and batch.target.dtype == torch.int64


def test_targets_are_drawn_from_the_next_positives_and_all_of_them_turn_up() -> None:
    """Events 1 to 6 in one stretch, of which the third is no positive: each place draws from itself and the next."""
    timelines = timelines_of(user_row("u", [TRAIN] * 6, weights=[1.0, 2.0, 0.0, 4.0, 5.0, 6.0]))
    windows = training_windows(timelines, 10, EVERYTHING)
    generator = np.random.default_rng(0)
    found: list[set[int]] = [set() for _ in range(6)]
    for _ in range(60):
        batch = training_batch(timelines, windows, np.array([0]), ahead=2, generator=generator)
        target, weight = batch.target[0].tolist(), batch.weight[0].tolist()
        assert [w for t, w in zip(target, weight, strict=True) if t] == [float(t) for t in target if t]
        for place, item in enumerate(target):
            found[place].add(item)
    assert found == [{1, 2}, {2}, {0}, {4, 5}, {5, 6}, {6}]
    with pytest.raises(ValueError, match="pass a generator"):
        training_batch(timelines, windows, np.array([0]), ahead=2)


def test_the_gap_of_a_stretch_s_first_event_is_to_the_event_before_the_stretch() -> None:
    seconds = [0, 1, 3, 7, 15, 31]
    timelines = timelines_of(user_row("x", [TRAIN]), user_row("a", [TRAIN] * 6, seconds=seconds))
    windows = training_windows(timelines, 2, EVERYTHING)
    batch = training_batch(timelines, windows, np.arange(1, len(windows)))
    assert windows.start[1:].tolist() == [1, 2, 3, 4]
    assert batch.gap_seconds.tolist() == [[0, 1], [1, 2], [2, 4], [4, 8]]


def test_moving_a_batch_keeps_every_part_in_its_place() -> None:
    timelines = timelines_of(*THREE)
    batch = training_batch(timelines, training_windows(timelines, 5, EVERYTHING), np.array([0, 1]))
    moved = batch.to("meta")
    for name in ("item_index", "event_type", "gap_seconds", "length", "feature_row", "target", "weight"):
        assert getattr(moved, name).is_meta
        assert getattr(moved, name).shape == getattr(batch, name).shape, name
        assert getattr(moved, name).dtype == getattr(batch, name).dtype, name
    assert moved.user_features.numeric.is_meta


# --- queries


def test_a_query_sees_the_newest_events_before_the_split_and_the_features_as_of_then() -> None:
    timelines = timelines_of(
        user_row(
            "a", [TRAIN, TRAIN, TRAIN, VALIDATION, TEST], seconds=[0, 5, 6, 8, 9], feature_row=[0] * 5 + [1, 2, 3]
        ),
        user_row("b", [], first_item=60, feature_row=[0, 0, 1]),
        user_row("c", [TEST], first_item=80, feature_row=[0, 1, 1, 1]),
    )
    everyone = np.array([2, 0, 1])
    batch = query_batch(timelines, everyone, split=TEST, query=1, history_length=2)
    assert batch.length.tolist() == [0, 2, 0]
    assert batch.item_index.tolist() == [[0, 0], [3, 4], [0, 0]]
    assert batch.gap_seconds.tolist() == [[0, 0], [1, 2], [0, 0]]
    assert [features_at(batch, row, int(batch.length[row])) for row in range(3)] == [[80, 1], [1, 2], [60, 0]]
    assert not batch.weight.any() and batch.weight.shape == (3, 3)
    batch = query_batch(timelines, everyone, split=VALIDATION, query=0, history_length=9)
    assert batch.item_index.tolist() == [[0, 0, 0], [1, 2, 3], [0, 0, 0]]
    assert features_at(batch, 1, 3) == [1, 1]
    batch = query_batch(timelines, everyone, split=EVERYTHING, query=2, history_length=9)
    assert batch.length.tolist() == [1, 5, 0]
    assert batch.gap_seconds[1].tolist() == [0, 5, 1, 2, 1]
    assert [features_at(batch, row, int(batch.length[row])) for row in range(3)] == [[80, 1], [1, 3], [60, 1]]


def test_a_query_of_users_without_events_has_no_history() -> None:
    timelines = timelines_of(*THREE)
    batch = query_batch(timelines, np.array([1]), split=TEST, query=1, history_length=5)
    assert batch.item_index.shape == (1, 0) and batch.feature_row.shape == (1, 1)
    assert features_at(batch, 0, 0) == [50, 0]
