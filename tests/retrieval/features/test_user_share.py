"""The newest events of each user, worked by hand, and what the others are to everything that reads timelines."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from rec_ray.config import InteractionSettings
from rec_ray.retrieval.features.encoding import Labelling, encode_timelines, label_events
from rec_ray.retrieval.features.preprocessing import Preprocessor, collect_statistics, fit_features
from rec_ray.retrieval.features.timelines import Timelines, training_batch, training_windows
from rec_ray.retrieval.features.user_share import LEAST_BOUND, beyond_newest, largest_user, usual_bound
from rec_ray.retrieval.lists.popularity import count_by_segment
from rec_ray.retrieval.metrics.holdout import positives_before_test
from rec_ray.retrieval.model.inference import seen_items
from rec_ray.schema import INTERACTIONS, Split, SplitTimes

VALIDATION, TEST = Split.VALIDATION, Split.TEST

START = datetime(2024, 1, 1, tzinfo=UTC)
TIMES = SplitTimes(*(START + timedelta(days=day) for day in (70, 80, 100)))


def test_the_newest_events_of_each_user_and_label_stay() -> None:
    user = np.array([0, 0, 0, 0, 1, 2, 2, 2])
    split = np.array([0, 0, 0, 1, 0, 0, 2, 2])
    assert beyond_newest(user, split, 2).tolist() == [True, False, False, False, False, False, False, False]
    assert beyond_newest(user, split, 1).tolist() == [True, True, False, False, False, False, True, False]
    assert not beyond_newest(user, split, None).any()
    assert beyond_newest(np.zeros(0, int), np.zeros(0, int), 1).tolist() == []


def test_the_usual_bound_is_ten_times_what_nine_in_ten_users_have_and_a_crawler_does_not_raise_it() -> None:
    eight_events = np.full(200, 8)
    assert usual_bound(np.bincount([*eight_events, 32_000])) == LEAST_BOUND == 100
    assert usual_bound(np.bincount([*np.full(18, 50), 400, 900_000])) == 500
    assert usual_bound(np.bincount(np.full(20, 500))) == 5_000
    assert usual_bound(np.bincount([*[0] * 900, *np.full(9, 60), 90_000])) == 600, "users without events do not count"
    assert usual_bound(np.zeros(0, int)) == usual_bound(np.array([5])) == LEAST_BOUND


def test_the_user_with_the_most_events_is_found() -> None:
    assert largest_user(np.array([0, 1, 1, 2]), pa.array(["a", "b", "c"])) == ("b", 2)
    assert largest_user(np.zeros(0, int), pa.array([], pa.string())) == ("", 0)


def test_every_reader_of_timelines_agrees_on_what_is_a_positive() -> None:
    """Items: a to h are a crawler's, of which the newest three count; d is disliked by value, x by its type."""
    crawler = [(day, item, "view", 1.0) for day, item in enumerate("abc")] + [
        (3, "d", "view", -1.0),
        (4, "e", "view", 1.0),
        (5, "f", "view", 1.0),
        (75, "g", "view", 1.0),
        (90, "h", "view", -1.0),
        (91, "a", "view", 1.0),
    ]
    other = [(1, "b", "view", 1.0), (2, "x", "skip", 1.0), (3, "f", "view", 0.0)]
    rows = []
    for name, events in (("crawler", crawler), ("other", other)):
        queries = [(day, None, None, None) for day in (70, 80, 100)]
        for day, item, kind, value in [*events, *queries]:
            when = START + timedelta(days=day)
            rows.append([name, item, when, len(rows), kind, value])
    block = pa.table([pa.array(column) for column in zip(*rows, strict=True)], names=INTERACTIONS.names).cast(
        INTERACTIONS
    )
    items = pa.array([*"abcdefgh", "x"])
    labelling = Labelling.of(InteractionSettings(negative_types=["skip"]), "time", TIMES).with_events_per_user(3)
    labelled = label_events(block, items, labelling)
    none = fit_features(collect_statistics(block, {}), {}, text_buckets=8, max_vocabulary=10)
    preprocessor = Preprocessor(none, none, tuple(items.to_pylist()), ("skip", "view", "view (disliked)"))
    timelines = Timelines.from_table(encode_timelines(labelled, preprocessor), preprocessor.users.shape)

    def named(indices: np.ndarray) -> list[str]:
        return [str(items[int(index) - 1]) for index in indices]

    assert labelled.facts["beyond_events"] == 3 and labelled.facts["beyond_users"] == 1
    assert timelines.weight.tolist() == [-1, -1, -1, 0, 1, 1, 1, 0, 1, 1, 0, 0]
    assert named(labelled.item_index[labelled.is_training & (labelled.weight > 0)]) == ["e", "f", "b"]
    assert named(labelled.item_index[labelled.is_held_out]) == ["g", "a"]
    assert named(timelines.positives(TEST)[0]) == ["a"]
    assert named(positives_before_test(timelines)[0]) == ["e", "f", "g", "b"]
    popular = count_by_segment(timelines, pa.array(["s", "s"]))
    assert sorted(named(popular["item_index"].to_numpy())) == ["a", "b", "e", "f", "g"]
    assert popular["positives"].to_pylist() == [1] * 5
    windows = training_windows(timelines, 4, VALIDATION)
    batch = training_batch(timelines, windows, np.arange(len(windows)))
    assert (batch.weight >= 0).all()
    targets = batch.target[batch.target > 0].tolist()
    assert sorted(named(np.array(targets))) == ["e", "f"], "without features the first event of a user is context"
    assert sorted(named(batch.negative[batch.negative > 0].numpy())) == ["d"]
    seen, first = seen_items(timelines, np.array([0, 1]), TEST)
    assert named(seen[first[0] : first[1]]) == list("abcdefg"), "history only, or disliked: seen all the same"
