"""Rankings and their metrics by segment, for a handful of users worked out by hand."""

import itertools
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest
import torch

from rec_ray.retrieval.features.batch import FeatureBatch, FeatureShape
from rec_ray.retrieval.features.catalogue import Catalogue
from rec_ray.retrieval.features.preprocessing import FeaturePreprocessor, Preprocessor
from rec_ray.retrieval.features.timelines import TIMELINES, Timelines
from rec_ray.retrieval.metrics.baselines import Popularity
from rec_ray.retrieval.metrics.holdout import HoldoutCounts, collect_held_out, users_with_targets
from rec_ray.retrieval.metrics.metrics import bootstrap_weights
from rec_ray.retrieval.metrics.rankers import CountingRanker, TowerRanker, best_items
from rec_ray.retrieval.metrics.segment_metrics import EVERYONE, SegmentMetrics
from rec_ray.retrieval.model.bundle import TwoTowerBundle, as_evaluated
from rec_ray.retrieval.model.towers import build_two_tower
from rec_ray.schema import Split

TRAIN, VALIDATION, TEST = Split

EMPTY = FeatureShape(numeric=0, fields=0, tokens=0, vector=0)
LATE = 5
"""An item that comes with the test."""


def timelines_of(*users):
    """Make timelines: each user is a list of (item, split) or (item, split, weight)."""
    rows = []
    for number, events in enumerate(users):
        full = [(*event, 1.0)[:3] for event in events]
        n = len(full)
        rows.append(
            {
                "user_id": f"u{number}",
                "item_index": [item for item, _, _ in full],
                "event_type": [0] * n,
                "event_seconds": list(range(n)),
                "weight": [weight for _, _, weight in full],
                "split": [split for _, split, _ in full],
                "feature_row": [0] * (n + 3),
                **{f"user_{name}": [] for name in ("numeric", "tokens", "token_counts", "vector")},
            }
        )
    return Timelines.from_table(pa.Table.from_pylist(rows, schema=TIMELINES), EMPTY)


def catalogue_of(id_index, count, known):
    n = len(id_index)
    empty = FeatureBatch.from_numpy(
        np.zeros((n + 1, 0), np.float32),
        np.zeros(0, np.int32),
        np.zeros((n + 1, 0), np.int32),
        np.zeros((n + 1, 0), np.float32),
    )
    return Catalogue(
        item_ids=pa.array([f"i{number}" for number in range(1, n + 1)]),
        id_index=torch.tensor([0, *id_index]),
        known=np.array([False, *known]),
        count=np.array([0, *count]),
        features=empty,
    )


def bundle_of(rows):
    """Return towers without features that give every user the vector (1, 0) and item row i + 1 the vector rows[i]."""
    features = FeaturePreprocessor({}, {}, {})
    preprocessor = Preprocessor(features, features, tuple(f"i{n}" for n in range(len(rows))), ())
    arguments = {
        "vocabulary_size": len(rows) + 1,
        "item_shape": asdict(EMPTY),
        "user_shape": asdict(EMPTY),
        "embedding_size": 2,
        "history": "none",
        "history_length": 5,
    }
    model = build_two_tower(**arguments).eval()
    with torch.no_grad():
        model.item_tower.ids.weight[1:] = torch.tensor(rows)
        model.user_tower.begin[:] = torch.tensor([1.0, 0.0])
    return TwoTowerBundle(model, arguments, preprocessor, {})


KNOWN = [True, True, True, True, False]
USERS = timelines_of(
    [(1, TRAIN), (2, TEST), (LATE, TEST)],  # one target is of an item not known before the test
    [(3, TEST), (3, TEST)],  # no history; the same item twice is one target
    [(1, TRAIN), (2, VALIDATION), (1, TEST)],  # took again what was seen
    [(1, TRAIN), (2, TRAIN, 0.0), (4, TEST), (3, TEST, 0.0)],  # a negative event is history, and no target
    [(1, TRAIN)],  # nothing held out
)


def asked(exclude_seen, catalogue=None):
    catalogue = catalogue or catalogue_of([1, 2, 3, 4, 0], [4, 2, 0, 1, 0], KNOWN)
    return collect_held_out(USERS, users_with_targets(USERS), catalogue, exclude_seen=exclude_seen)


def ragged(values, first):
    return [values[start:end].tolist() for start, end in itertools.pairwise(first)]


def test_users_are_asked_about_what_they_took_and_could_be_shown():
    questions, held_out = asked(exclude_seen=True)
    assert questions.users.tolist() == [0, 1, 3]
    assert ragged(questions.targets, questions.offsets) == [[2], [3], [4]]
    assert ragged(*questions.exclude) == [[1], [], [1, 2]]
    assert ragged(*questions.history) == [[1], [], [1]]
    assert questions.events.tolist() == [1, 0, 2]
    assert held_out == HoldoutCounts(targets=3, seen_targets=1, unknown_targets=1)

    questions, held_out = asked(exclude_seen=False)
    assert questions.users.tolist() == [0, 1, 2, 3]
    assert ragged(questions.targets, questions.offsets) == [[2], [3], [1], [4]]
    assert questions.exclude is None
    assert held_out == HoldoutCounts(targets=4, seen_targets=0, unknown_targets=1)


def test_towers_rank_by_the_product():
    catalogue = catalogue_of([1, 2, 3, 4, 0], [4, 2, 0, 1, 0], KNOWN)
    # Scores 0.6, 1, 0, -1: the ranking of all is 2, 1, 3, 4, and item 5 is in none.
    method = TowerRanker(bundle_of([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), catalogue)
    ranking = method.rank(asked(exclude_seen=True)[0])
    assert ranking.ranks.tolist() == [1, 3, 2]
    assert [row[row >= 0].tolist() for row in ranking.lists] == [[2, 3, 4], [2, 1, 3, 4], [3, 4]]
    assert ranking.target_scores.tolist() == pytest.approx([1.0, 0.0, -1.0], abs=1e-6)
    assert ranking.scores[1][:4].tolist() == pytest.approx([1.0, 0.6, 0.0, -1.0], abs=1e-6)
    assert ranking.random_scores.shape == (3,)


def test_an_item_that_an_older_version_cannot_know_ranks_last():
    # It knows 1 and 4 alone: 1 scores -1 and 4 scores 1.
    catalogue = catalogue_of([1, 0, 0, 2, 0], [4, 2, 0, 1, 0], KNOWN)
    method = TowerRanker(bundle_of([[-1.0, 0.0], [1.0, 0.0]]), catalogue)
    questions = asked(exclude_seen=True)[0]
    ranking = method.rank(questions)
    # u0 has 3 items to rank (2, 3, 4), u1 all 4, u3 has 3 and 4: what is unknown has the last place.
    assert ranking.ranks.tolist() == [3, 4, 1]
    assert [row[row >= 0].tolist() for row in ranking.lists] == [[4], [4, 1], [4]]
    assert method.rank(asked(exclude_seen=False)[0]).ranks.tolist() == [4, 4, 2, 1]


def test_counts_rank_the_same_questions():
    catalogue = catalogue_of([1, 2, 3, 4, 0], [4, 2, 0, 1, 0], KNOWN)
    ranking = CountingRanker(Popularity(np.array([0, 4, 2, 0, 1, 9.0])), catalogue).rank(asked(exclude_seen=True)[0])
    assert ranking.ranks.tolist() == [1, 4, 1]
    assert [row[row >= 0].tolist() for row in ranking.lists] == [[2, 4, 3], [1, 2, 4, 3], [4, 3]]


def test_segments_have_the_metrics_of_their_users_and_targets():
    catalogue = catalogue_of([1, 2, 3, 4, 0], [4, 2, 0, 1, 0], KNOWN)
    questions = asked(exclude_seen=True)[0]
    ranking = CountingRanker(Popularity(np.array([0, 4, 2, 0, 1, 9.0])), catalogue).rank(questions)
    sums = SegmentMetrics([1, 2], (1, 1, 2), len(catalogue))
    sums.add("popularity", bootstrap_weights(np.arange(3)), questions, ranking, catalogue)
    # Ranks 1, 4, 1 of users with 1, 0 and 2 events; the target of the second was never learned from.
    everyone = sums.sums["popularity", EVERYONE].means()
    assert everyone["recall@1"] == pytest.approx(2 / 3)
    assert everyone["mrr"] == pytest.approx((1 + 1 / 4 + 1) / 3)
    expected = {
        "cold_users": (1, 1 / 4),
        "warm_users": (2, 1.0),
        "activity_1": (1, 1.0),
        "activity_3": (1, 1.0),
        "cold_items": (1, 1 / 4),
        "warm_items": (2, 1.0),
    }
    assert sums.segments() == list(expected)
    for segment, (users, mrr) in expected.items():
        assert sums.users("popularity", segment) == users
        assert sums.sums["popularity", segment].means()["mrr"] == pytest.approx(mrr)
    assert sums.recommended["popularity"].tolist() == [0, 1, 2, 3, 3, 0]


def test_a_user_with_targets_of_both_kinds_counts_in_both_segments():
    catalogue = catalogue_of([1, 2, 3, 4, 0], [4, 2, 0, 1, 0], KNOWN)
    users = timelines_of([(1, TRAIN), (2, TEST), (3, TEST)])
    questions = collect_held_out(users, np.array([0]), catalogue, exclude_seen=True)[0]
    ranking = CountingRanker(Popularity(np.array([0, 4, 2, 0, 1, 9.0])), catalogue).rank(questions)
    assert ranking.ranks.tolist() == [1, 3]
    sums = SegmentMetrics([1], (1, 1, 1), len(catalogue))
    sums.add("popularity", bootstrap_weights(np.arange(1)), questions, ranking, catalogue)
    found = {segment: sums.sums["popularity", segment].means()["mrr"] for segment in ("cold_items", "warm_items")}
    assert found == {"cold_items": pytest.approx(1 / 3), "warm_items": 1.0}
    assert sums.sums["popularity", EVERYONE].means()["recall@1"] == 0.5


def test_sums_of_blocks_add_up_through_tables():
    catalogue = catalogue_of([1, 2, 3, 4, 0], [4, 2, 0, 1, 0], KNOWN)
    method = CountingRanker(Popularity(np.array([0, 4, 2, 0, 1, 9.0])), catalogue)
    places = users_with_targets(USERS)
    whole, parts = (SegmentMetrics([1, 5], (1, 1, 2), len(catalogue)) for _ in range(2))
    for sums, blocks in ((whole, [places]), (parts, [places[:2], places[2:]])):
        for block in blocks:
            questions = collect_held_out(USERS, block, catalogue, exclude_seen=True)[0]
            own = SegmentMetrics([1, 5], (1, 1, 2), len(catalogue))
            draws = bootstrap_weights(questions.users)
            own.add("popularity", draws, questions, method.rank(questions), catalogue)
            sums.add_table(own.to_table())
    assert whole.segments() == parts.segments()
    for key, sums in whole.sums.items():
        assert parts.sums[key].means() == pytest.approx(sums.means(), nan_ok=True), key
        assert parts.sums[key].users() == sums.users()
    assert parts.recommended["popularity"].tolist() == whole.recommended["popularity"].tolist()


def test_a_bundle_without_a_refit_is_judged_as_it_is():
    bundle = bundle_of([[1.0, 0.0]])
    assert as_evaluated(bundle) is bundle


@pytest.mark.parametrize("count", [1, 3, 7, 50])
def test_the_best_items_are_those_of_a_sort_with_ties_by_index(count: int) -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(4, size=(200, 40)).astype(np.float64)
    scores[generator.random(scores.shape) < 0.5] = -np.inf
    scores[:3] = -np.inf
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    expected = np.where(np.take_along_axis(scores, expected, axis=1) > -np.inf, expected, -1)
    np.testing.assert_array_equal(best_items(scores, count), expected)
