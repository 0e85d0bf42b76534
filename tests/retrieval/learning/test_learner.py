"""Learning on small worlds whose structure is known, each part of a step by hand, and two workers against one."""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn import functional as F

from rec_ray.config import TrainSettings
from rec_ray.retrieval.features.batch import FeatureBatch, FeatureShape
from rec_ray.retrieval.features.catalogue import Catalogue
from rec_ray.retrieval.features.timelines import (
    QUERIES,
    TIMELINES,
    TimelineBatch,
    Timelines,
    Windows,
    query_batch,
    training_batch,
    training_windows,
)
from rec_ray.retrieval.learning import learner as learning
from rec_ray.retrieval.learning.learner import LEAST_RATE, Learner, share_of_learning_rate, shuffled_batches
from rec_ray.retrieval.metrics.metrics import recall_at_k, reciprocal_rank
from rec_ray.retrieval.model import towers
from rec_ray.retrieval.model.inference import (
    drop_excluded,
    embed_as_history,
    embed_catalogue,
    embed_queries,
    seen_items,
)
from rec_ray.retrieval.model.towers import TwoTower, build_two_tower
from rec_ray.retrieval.ragged import take_rows
from rec_ray.retrieval.search import ExactTopK
from rec_ray.schema import Split

TRAIN, VALIDATION, TEST = Split

Array = npt.NDArray[Any]

GROUPS, GROUP_ITEMS = 4, 6
ITEMS = GROUPS * GROUP_ITEMS
HISTORY = 8
USER_SHAPE = FeatureShape(fields=1, tokens=GROUPS + 1)
NO_SHAPE = FeatureShape()
SETTINGS = TrainSettings(
    batch_size=256,
    learning_rate=1e-2,
    weight_decay=0.0,
    warmup=0.05,
    temperature=0.1,
    loss="softmax",
    in_batch_negatives=True,
    uniform_negatives=10_000,
    log_q=True,
    explicit_negatives=False,
    label_smoothing=0.0,
    precision="auto",
    seed=0,
)


@pytest.fixture(autouse=True)
def all_items_are_negatives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "UNSEEN_SHARE", 1.0)


def changed(**settings: Any) -> TrainSettings:
    return SETTINGS.model_copy(update=settings)


def timelines_of(events: list[list[int]], splits: list[list[int]], groups: list[int], **more: Any) -> Timelines:
    """Users with items in order; the one user feature is the token of the group, 1 on."""
    rows = [
        {
            "user_id": f"u{u}",
            "item_index": items,
            "event_type": [0] * len(items),
            "event_seconds": list(range(len(items))),
            "weight": more["weights"][u] if "weights" in more else [1.0] * len(items),
            "split": splits[u],
            "feature_row": [0] * (len(items) + QUERIES),
            "user_numeric": [],
            "user_tokens": [groups[u] + 1],
            "user_token_counts": [1],
            "user_vector": [],
        }
        for u, items in enumerate(events)
    ]
    return Timelines.from_table(pa.Table.from_pylist(rows, schema=TIMELINES), USER_SHAPE)


def catalogue_of(counts: Array, *, known: Array | None = None, without_id: tuple[int, ...] = ()) -> Catalogue:
    """Items 1 .. n with their group as the only feature; those `without_id` have no row of their own."""
    n = len(counts)
    index = np.arange(1, n + 1)
    groups = torch.from_numpy((index - 1) // GROUP_ITEMS + 1)
    return Catalogue(
        item_ids=pa.array([f"i{i}" for i in index]),
        id_index=torch.tensor([0, *(0 if i in without_id else i for i in index.tolist())]),
        known=np.concatenate([[False], np.ones(n, bool) if known is None else known]),
        count=np.concatenate([[0], counts]),
        features=FeatureBatch(
            torch.zeros(n + 1, 0), groups, torch.tensor([0] + [1] * n)[:, None], torch.zeros(n + 1, 0)
        ),
    )


def world(kind: str, *, users: int = 240, seed: int = 0) -> tuple[Timelines, Catalogue]:
    """Users of a group take items of their group only; the last event is the test, the one before the validation.

    cycle: each item is followed by the next one of its group. checkerboard: items of the group in a random order.
    shuffled: any item in a random order, whatever the group.
    """
    rng = np.random.default_rng(seed)
    events, splits, groups = [], [], []
    for user in range(users):
        group, length = user % GROUPS, int(rng.integers(5, HISTORY + 3))
        own = np.arange(group * GROUP_ITEMS, (group + 1) * GROUP_ITEMS) + 1
        if kind == "cycle":
            items = own[(rng.integers(GROUP_ITEMS) + np.arange(length)) % GROUP_ITEMS]
        elif kind == "checkerboard":
            items = rng.choice(own, length)
        else:
            items = rng.integers(1, ITEMS + 1, length)
        events.append(items.tolist())
        splits.append([TRAIN] * (length - 2) + [VALIDATION, TEST])
        groups.append(group)
    timelines = timelines_of(events, splits, groups)
    counts = np.bincount(timelines.item_index[timelines.split == TRAIN], minlength=ITEMS + 1)[1:]
    return timelines, catalogue_of(counts)


def model_of(seed: int = 0, **arguments: Any) -> TwoTower:
    torch.manual_seed(seed)
    defaults: dict[str, Any] = {
        "vocabulary_size": ITEMS + 1,
        "item_shape": dataclasses.asdict(NO_SHAPE),
        "user_shape": dataclasses.asdict(NO_SHAPE),
        "embedding_size": 16,
        "history": "transformer",
        "history_length": HISTORY,
        "layers": 1,
        "dropout": 0.0,
        "id_dropout": 0.0,
    }
    return build_two_tower(**(defaults | arguments))


def train(
    timelines: Timelines,
    catalogue: Catalogue,
    settings: TrainSettings = SETTINGS,
    epochs: int = 12,
    **arguments: Any,
) -> tuple[Learner, list[float]]:
    windows = training_windows(timelines, HISTORY, VALIDATION)
    steps = len(shuffled_batches(windows, settings.batch_size, 0)) * epochs
    learner = Learner(model_of(settings.seed, **arguments), catalogue, settings, total_steps=steps)
    losses = [
        learner.step(batch) for epoch in range(1, epochs + 1) for batch in learner.batches(timelines, windows, epoch)
    ]
    return learner, losses


def recall(learner: Learner, timelines: Timelines, k: int) -> float:
    """Recall@k of the last event of each user, over the whole catalogue."""
    users = np.arange(len(timelines))
    batch = query_batch(timelines, users, split=TEST, query=1, history_length=HISTORY)
    items = embed_catalogue(learner.model, learner.catalogue)
    targets, offsets = timelines.positives(TEST)
    history = embed_as_history(learner.model, learner.catalogue, items)
    queries = embed_queries(learner.model, batch, history).numpy()
    ranks = ExactTopK(items.numpy()).target_ranks(queries, targets, offsets, allowed=learner.catalogue.known)
    return float(np.nanmean(recall_at_k(ranks, offsets, k)))


# --- worlds


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        changed(uniform_negatives=12),
        changed(uniform_negatives=0, batch_size=128),
        changed(uniform_negatives=12, in_batch_negatives=False),
        changed(label_smoothing=0.1, weight_decay=0.01),
        changed(loss="bpr"),
    ],
    ids=["full softmax", "mixed negatives", "in batch", "uniform", "smoothed", "bpr"],
)
def test_what_follows_an_item_is_learned_and_held_out_events_are_predicted(settings: TrainSettings) -> None:
    timelines, catalogue = world("cycle")
    learner, losses = train(timelines, catalogue, settings, epochs=20 if settings.loss == "bpr" else 12)
    assert recall(learner, timelines, 1) > 0.9
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_both_similarities_learn(similarity: str) -> None:
    timelines, catalogue = world("cycle")
    learner, _ = train(timelines, catalogue, similarity=similarity)
    assert recall(learner, timelines, 1) > 0.9


def test_a_world_without_structure_stays_at_chance() -> None:
    """Chance is 1/24, of 960 users 40 +- 6; five standard deviations are 0.032."""
    timelines, catalogue = world("shuffled", users=960)
    learner, _ = train(timelines, catalogue, epochs=5)
    assert abs(recall(learner, timelines, 1) - 1 / ITEMS) < 0.032
    assert abs(recall(learner, timelines, GROUP_ITEMS) - 1 / GROUPS) < 0.07


@pytest.mark.parametrize(
    ("history", "user_shape"),
    [("mean", NO_SHAPE), ("transformer", NO_SHAPE), ("none", USER_SHAPE)],
    ids=["mean", "transformer", "features"],
)
def test_a_user_s_group_is_learned_from_the_history_or_from_a_feature(history: str, user_shape: FeatureShape) -> None:
    timelines, catalogue = world("checkerboard")
    learner, _ = train(timelines, catalogue, epochs=10, history=history, user_shape=dataclasses.asdict(user_shape))
    assert recall(learner, timelines, GROUP_ITEMS) > 0.95


def test_a_second_row_for_histories_learns_and_is_read_when_users_are_embedded() -> None:
    timelines, catalogue = world("cycle")
    learner, _ = train(timelines, catalogue, history_rows=True)
    assert recall(learner, timelines, 1) > 0.9
    table = learner.model.item_tower.history_ids
    assert table is not None
    with torch.no_grad():
        table.weight.normal_()
    assert recall(learner, timelines, 1) < 0.7


def test_without_history_and_features_all_users_are_the_same() -> None:
    timelines, catalogue = world("checkerboard")
    learner, _ = train(timelines, catalogue, epochs=3, history="none")
    assert recall(learner, timelines, GROUP_ITEMS) < 0.6


def test_a_new_item_is_carried_by_its_features() -> None:
    """The last item of each group is in no timeline and has no id; it ranks among the 6 of its group."""
    timelines, _ = world("checkerboard")
    new = tuple(range(GROUP_ITEMS, ITEMS + 1, GROUP_ITEMS))
    item_index = np.where(np.isin(timelines.item_index, new), timelines.item_index - 1, timelines.item_index)
    timelines = dataclasses.replace(timelines, item_index=item_index)
    counts = np.bincount(item_index[timelines.split == TRAIN], minlength=ITEMS + 1)[1:]
    shape = dataclasses.asdict(FeatureShape(fields=1, tokens=GROUPS + 1))
    catalogue = catalogue_of(counts, without_id=new)
    learner, _ = train(timelines, catalogue, changed(uniform_negatives=0), epochs=10, item_shape=shape, id_dropout=0.2)
    groups = np.arange(len(timelines)) % GROUPS
    asked = dataclasses.replace(
        timelines,
        item_index=np.where(
            timelines.split == TEST, np.repeat(np.array(new)[groups], np.diff(timelines.first)), item_index
        ),
    )
    assert recall(learner, asked, GROUP_ITEMS) > 0.9


# --- seeds


def weights_of(learner: Learner) -> list[torch.Tensor]:
    return list(learner.model.state_dict().values())


def test_a_seed_repeats_a_training_and_another_one_does_not() -> None:
    timelines, catalogue = world("cycle", users=60)
    sampled = changed(uniform_negatives=5, batch_size=64)
    runs = [
        train(timelines, catalogue, sampled.model_copy(update={"seed": seed}), epochs=2, dropout=0.2)
        for seed in (3, 3, 4)
    ]
    assert runs[0][1] == runs[1][1] != runs[2][1]
    assert all(torch.equal(a, b) for a, b in zip(weights_of(runs[0][0]), weights_of(runs[1][0]), strict=True))


# --- batches


def windows_of(lengths: Array) -> Windows:
    zeros = np.zeros(len(lengths), np.int64)
    return Windows(np.arange(len(lengths)), zeros, lengths.astype(np.int64), zeros)


def test_every_window_is_in_one_batch_of_about_the_wanted_events_and_little_is_padding() -> None:
    lengths = np.random.default_rng(0).geometric(0.1, 5000).clip(max=50)
    windows = windows_of(lengths)
    batches = shuffled_batches(windows, 512, 7)
    assert sorted(np.concatenate(batches).tolist()) == list(range(5000))
    sizes = np.array([lengths[batch].sum() for batch in batches])
    assert sizes.max() < 512 + 50
    assert np.median(sizes) > 512 - 50
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.1 * lengths.sum()
    # Short and long ones come in no order.
    means = np.array([lengths[batch].mean() for batch in batches])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.4


def test_batches_are_decided_by_their_seed() -> None:
    windows = windows_of(np.arange(1, 200) % 9 + 1)
    first, same, other = (shuffled_batches(windows, 32, seed) for seed in (1, 1, 2))
    assert [batch.tolist() for batch in first] == [batch.tolist() for batch in same]
    assert [batch.tolist() for batch in first] != [batch.tolist() for batch in other]


def test_a_window_that_is_larger_than_a_batch_is_a_batch_and_none_gives_none() -> None:
    batches = shuffled_batches(windows_of(np.array([50, 50, 50])), 8, 0)
    assert sorted(batch.tolist() for batch in batches) == [[0], [1], [2]]
    assert shuffled_batches(windows_of(np.zeros(0)), 8, 0) == []


# --- the learning rate


def rates(warmup: float, total: int) -> list[float]:
    return [share_of_learning_rate(step, total, warmup) for step in range(total + 2)]


def test_the_learning_rate_rises_over_the_warm_up_and_falls_along_a_cosine() -> None:
    found = rates(0.5, 10)
    assert found[0] == pytest.approx(1 / 5 * (1 + math.cos(math.pi * 0.1)) / 2)
    assert found[4] == pytest.approx(0.5)
    assert found[7] == pytest.approx((1 + math.cos(math.pi * 0.8)) / 2)
    assert found[9:] == [pytest.approx(LEAST_RATE)] * 3


def test_a_resumed_learner_continues_the_schedule() -> None:
    trained, resumed = learner_of(SETTINGS), learner_of(SETTINGS)
    resumed.resume(3)
    for _ in range(3):
        trained.step(small_batch())
    expected = SETTINGS.learning_rate * share_of_learning_rate(3, 10, SETTINGS.warmup)
    for learner in (trained, resumed):
        assert learner.steps == 3
        for optimizer in (learner.dense, learner.tables):
            assert {group["lr"] for group in optimizer.param_groups} == {expected}


@pytest.mark.parametrize(("steps", "rise"), [(100, 30), (1000, 150)])
def test_a_short_warm_up_is_made_longer_in_steps_up_to_a_share(steps: int, rise: int) -> None:
    found = rates(0.0, steps)
    assert found[0] == pytest.approx(1 / rise, rel=1e-3)
    assert found[rise - 1] == pytest.approx((1 + math.cos(math.pi * rise / steps)) / 2)
    assert all(later <= earlier for earlier, later in itertools.pairwise(found[rise - 1 :]))


def test_the_loss_at_chance_is_that_of_scores_by_popularity() -> None:
    """With all items as negatives it is the cross entropy of the popularity, over the positives of the batch."""
    learner = learner_of(changed())
    batch = small_batch()
    learner.step(batch)
    probability = learner.probability[learner.known]
    weight = batch.weight[batch.weight > 0]
    own = learner.probability[batch.target[batch.weight > 0]]
    clamped = probability.clamp(min=1e-12)
    expected = float((weight * (clamped.sum().log() - own.log())).sum() / weight.sum())
    assert learner.take_chance() == pytest.approx(expected, rel=1e-5)
    assert learner.take_chance() == 0.0


# --- the loss


WEIGHTS = [[1.0, 0.0, 2.0, 0.5], [3.0, 1.0], [0.25, 1.0, 1.0], [1.0]]
SMALL = timelines_of(
    [[1, 7, 2, 8], [13, 14], [1, 2, 19], [3]],
    [[TRAIN] * 4, [TRAIN] * 2, [TRAIN] * 3, [TRAIN]],
    [0, 2, 0, 0],
    weights=WEIGHTS,
)
SMALL_COUNTS = np.bincount(SMALL.item_index, minlength=ITEMS + 1)[1:]


def small_batch(chosen: list[int] | None = None) -> TimelineBatch:
    windows = training_windows(SMALL, HISTORY, VALIDATION)
    return training_batch(SMALL, windows, np.array(chosen if chosen is not None else range(4)))


def looped_loss(
    learner: Learner, negatives: list[int] | None, *, smoothing: float = 0.0, disliked: bool = False
) -> float:
    """Softmax of each positive among its own item and the negatives (None: all items), position by position.

    disliked: what the same user has with a weight of 0 is one column more.
    """
    total = weights = 0.0
    for items, row_weights, group in zip([[1, 7, 2, 8], [13, 14], [1, 2, 19], [3]], WEIGHTS, [0, 2, 0, 0], strict=True):
        more = [item for item, weight in zip(items, row_weights, strict=True) if disliked and not weight]
        for place, weight in enumerate(row_weights):
            one = timelines_of([items[:place]], [[TRAIN] * place], [group])
            query = query_batch(one, np.array([0]), split=VALIDATION, query=0, history_length=HISTORY)
            index = torch.arange(0, ITEMS + 1)
            every = learner.catalogue.embed(learner.model, index)
            history = learner.catalogue.as_history(learner.model, index, every)
            vector = learner.model.embed_users(history, query)[0]
            columns = sorted({items[place], *(negatives if negatives is not None else range(1, ITEMS + 1))})
            scores = every[columns + more] @ vector / learner.settings.temperature
            target = torch.tensor(columns.index(items[place]))
            total += weight * F.cross_entropy(scores, target, label_smoothing=smoothing).item()
            weights += weight
    return total / weights


def learner_of(settings: TrainSettings, catalogue: Catalogue | None = None, **arguments: Any) -> Learner:
    arguments = {"user_shape": dataclasses.asdict(USER_SHAPE)} | arguments
    return Learner(model_of(**arguments), catalogue or catalogue_of(SMALL_COUNTS), settings, total_steps=10)


@pytest.mark.parametrize(
    ("history", "smoothing", "rows"),
    [("none", 0.0, True), ("mean", 0.2, False), ("transformer", 0.0, False), ("transformer", 0.2, True)],
)
def test_with_all_items_as_negatives_the_loss_is_the_weighted_exact_softmax(
    history: str, smoothing: float, rows: bool
) -> None:
    learner = learner_of(changed(label_smoothing=smoothing), history=history, history_rows=rows)
    assert learner.loss(small_batch()).item() == pytest.approx(
        looped_loss(learner, None, smoothing=smoothing), rel=1e-4
    )


def test_with_in_batch_negatives_alone_they_are_the_positives_of_the_batch() -> None:
    learner = learner_of(changed(uniform_negatives=0, log_q=False))
    positives = [1, 2, 8, 13, 14, 19, 3]  # not 7: it has no weight
    assert learner.loss(small_batch()).item() == pytest.approx(looped_loss(learner, positives), rel=1e-4)


@pytest.mark.parametrize("uniform", [0, 10_000])
def test_declared_negatives_join_the_denominator_of_their_user_alone(uniform: int) -> None:
    """Item 7 has no weight: it stands beside the positives 1, 2 and 8 of the first user, whatever is drawn."""
    learner = learner_of(changed(uniform_negatives=uniform, log_q=False, explicit_negatives=True))
    batch = small_batch()
    assert batch.negative.tolist() == [[0, 7, 0, 0], [0] * 4, [0] * 4, [0] * 4]
    columns = None if uniform else [1, 2, 8, 13, 14, 19, 3]
    expected = looped_loss(learner, columns, disliked=True)
    assert learner.loss(batch).item() == pytest.approx(expected, rel=1e-4)
    assert expected > looped_loss(learner, columns) + 0.01


def test_an_item_that_is_a_positive_too_is_no_negative_of_itself() -> None:
    timelines = timelines_of([[5, 6, 5]], [[TRAIN] * 3], [0], weights=[[0.0, 1.0, 1.0]])
    batch = training_batch(timelines, training_windows(timelines, HISTORY, VALIDATION), np.array([0]))
    items, rows = batch.explicit_negatives(batch.weight > 0)
    assert (items.tolist(), rows.tolist()) == ([5], [0])


def test_a_declared_negative_is_pushed_below_what_nobody_declared() -> None:
    """Users take any item of their group, but never its first, which they declare negative."""
    timelines, _ = world("checkerboard")
    first = (timelines.item_index - 1) % GROUP_ITEMS == 0
    timelines = dataclasses.replace(timelines, weight=np.where(first, 0.0, timelines.weight).astype(np.float32))
    counts = np.bincount(timelines.item_index[~first], minlength=ITEMS + 1)[1:]
    scores = []
    for explicit in (True, False):
        settings = changed(explicit_negatives=explicit, uniform_negatives=0)
        learner, _ = train(timelines, catalogue_of(counts), settings, epochs=10)
        items = embed_catalogue(learner.model, learner.catalogue)
        batch = query_batch(timelines, np.arange(40), split=TEST, query=1, history_length=HISTORY)
        queries = embed_queries(learner.model, batch, embed_as_history(learner.model, learner.catalogue, items))
        own = torch.arange(40) % GROUPS * GROUP_ITEMS + 1
        scores.append(float((queries * items[own]).sum(1).mean()))
    assert scores[0] < scores[1] - 0.05, scores


def test_items_without_a_positive_share_the_row_of_the_unknown_one() -> None:
    counts = SMALL_COUNTS.copy()
    counts[4 - 1] = 0
    learner = learner_of(SETTINGS, catalogue_of(counts))
    assert 4 in learner.untrained_rows and 1 not in learner.untrained_rows
    assert learner.catalogue.id_index[4] == 0 and learner.catalogue.id_index[1] == 1
    known = torch.zeros(ITEMS + 1, dtype=torch.bool)
    known[4] = True
    warm = Learner(model_of(), catalogue_of(counts), SETTINGS, total_steps=1, known_rows=known)
    assert 4 not in warm.untrained_rows and warm.catalogue.id_index[4] == 4


def test_half_precision_learns_too() -> None:
    timelines, catalogue = world("cycle")
    learner, _ = train(timelines, catalogue, changed(precision="bf16", uniform_negatives=12))
    assert learner.half and not train(timelines, catalogue, epochs=0)[0].half
    assert recall(learner, timelines, 1) > 0.9
    assert all(weight.dtype == torch.float32 for weight in weights_of(learner))


def test_without_in_batch_negatives_only_the_draws_are_negatives() -> None:
    known = np.zeros(ITEMS, bool)
    known[[4, 9, 22]] = True
    settings = changed(uniform_negatives=9, in_batch_negatives=False)
    learner = learner_of(settings, catalogue_of(SMALL_COUNTS, known=known))
    state = learner.negatives.get_state()
    loss = learner.loss(small_batch()).item()
    learner.negatives.set_state(state)
    drawn = learner.known[torch.randint(len(learner.known), (9,), generator=learner.negatives)].tolist()
    assert loss == pytest.approx(looped_loss(learner, drawn), rel=1e-4)
    assert loss < looped_loss(learner, [*drawn, 1, 2, 8, 13, 14, 19, 3]) - 0.01


def test_items_that_are_not_known_are_no_negatives_but_what_is_learned_from_is() -> None:
    known = np.zeros(ITEMS, bool)
    known[[4, 9, 22]] = True
    learner = learner_of(SETTINGS, catalogue_of(SMALL_COUNTS, known=known))
    assert learner.known.tolist() == [1, 2, 3, 5, 7, 8, 10, 13, 14, 19, 23]
    assert learner.loss(small_batch()).item() == pytest.approx(looped_loss(learner, learner.known.tolist()), rel=1e-4)
    ids, places, log_q = learner_of(changed(uniform_negatives=4), learner.catalogue).sample_candidates(
        torch.tensor([3, 19, 3])
    )
    assert log_q is not None and len(log_q) == len(ids)
    assert ids[places[:3]].tolist() == [3, 19, 3] and len(places) == 7
    assert set(ids.tolist()) <= set(learner.known.tolist())


@pytest.mark.parametrize("history", ["none", "mean", "transformer"])
def test_timelines_of_one_event_have_nothing_before_it_and_are_learned_from_too(history: str) -> None:
    learner = learner_of(SETTINGS, history=history)
    batch = small_batch([3, 3])
    assert batch.item_index.shape == (2, 0)
    assert math.isfinite(learner.step(batch))


def test_items_without_a_positive_are_negatives_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "UNSEEN_SHARE", 0.25)
    unseen = int((SMALL_COUNTS == 0).sum())
    learner = learner_of(SETTINGS)
    sizes = [len(learner.sample_candidates(torch.tensor([3]))[0]) for _ in range(400)]
    assert ITEMS - unseen + 0.2 * unseen < np.mean(sizes) < ITEMS - unseen + 0.3 * unseen
    ids, places, _ = learner_of(changed(uniform_negatives=5)).sample_candidates(torch.tensor([3, 19]))
    assert ids[places[:2]].tolist() == [3, 19]


def test_a_loss_that_is_not_finite_is_an_error_and_changes_nothing() -> None:
    learner = learner_of(SETTINGS)
    with torch.no_grad():
        learner.model.item_tower.ids.weight[2] = float("nan")
    before = [weight.clone() for weight in weights_of(learner)]
    with pytest.raises(FloatingPointError, match="the loss became nan at step 0; try a smaller"):
        learner.step(small_batch())
    assert learner.steps == 0
    assert all(
        torch.equal(
            a,
            b,
        )
        or a.isnan().any()
        for a, b in zip(before, weights_of(learner), strict=True)
    )


# --- validation and the ragged parts of it


def test_validation_is_the_mean_ndcg_over_users_with_a_held_out_positive() -> None:
    timelines, catalogue = world("cycle", users=30)
    weight = timelines.weight.copy()
    weight[timelines.first[1:4] - 2] = 0.0  # the first three users have no positive in the validation
    timelines = dataclasses.replace(timelines, weight=weight)
    learner, _ = train(timelines, catalogue, epochs=2)
    arguments: dict[str, Any] = {"split": VALIDATION, "query": 0, "history_length": HISTORY}
    total, users = learner.validation_ndcg(timelines, np.arange(30), exclude_seen=False, **arguments)
    assert users == 27
    items = embed_catalogue(learner.model, catalogue)
    history = embed_as_history(learner.model, catalogue, items)
    queries = embed_queries(learner.model, query_batch(timelines, np.arange(30), **arguments), history)
    targets, offsets = timelines.positives(VALIDATION)
    ranks = ExactTopK(items.numpy()).target_ranks(queries.numpy(), targets, offsets, allowed=catalogue.known)
    # With one target NDCG@10 is 1 / log2(rank + 1).
    assert total == pytest.approx(sum(1 / math.log2(rank + 1) for rank in ranks if rank <= 10))
    assert np.nanmean(reciprocal_rank(ranks, offsets)) > 0
    assert learner.validation_ndcg(timelines, np.zeros(0, np.int64), exclude_seen=True, **arguments) == (0.0, 0)


def test_validation_leaves_out_what_was_seen_and_targets_among_it() -> None:
    """User 0 takes 1, 2 and then 1 again, no target when seen items are excluded; user 1 takes 3 and then 4."""
    splits = [[TRAIN, TRAIN, VALIDATION], [TRAIN, VALIDATION]]
    timelines = timelines_of([[1, 2, 1], [3, 4]], splits, [0, 0])
    learner = learner_of(SETTINGS)
    arguments: dict[str, Any] = {"split": VALIDATION, "query": 0, "history_length": HISTORY}
    assert learner.validation_ndcg(timelines, np.arange(2), exclude_seen=False, **arguments)[1] == 2
    assert learner.validation_ndcg(timelines, np.arange(2), exclude_seen=True, **arguments)[1] == 1


def test_the_vectors_of_the_catalogue_do_not_depend_on_the_block() -> None:
    catalogue = catalogue_of(SMALL_COUNTS)
    model = model_of()
    whole, blocks = embed_catalogue(model, catalogue), embed_catalogue(model, catalogue, block=5)
    torch.testing.assert_close(whole, blocks)
    assert whole.shape == (ITEMS + 1, 16) and not whole[0].any()
    torch.testing.assert_close(whole[1:].norm(dim=1), torch.ones(ITEMS))


def test_ragged_parts_by_hand() -> None:
    first = np.array([0, 2, 2, 5])
    values, offsets = take_rows(np.array([10, 11, 12, 13, 14]), first, np.array([2, 1, 0, 2]))
    assert values.tolist() == [12, 13, 14, 10, 11, 12, 13, 14] and offsets.tolist() == [0, 3, 3, 5, 8]
    splits = [[TRAIN, VALIDATION, TEST], [], [TRAIN, TRAIN]]
    timelines = timelines_of([[5, 6, 7], [], [8, 8]], splits, [0, 0, 0])
    items, offsets = seen_items(timelines, np.array([2, 0, 1]), TEST)
    assert items.tolist() == [8, 8, 5, 6] and offsets.tolist() == [0, 2, 4, 4]
    targets, offsets = drop_excluded(np.array([3, 1, 3, 2, 9]), np.array([0, 3, 3, 5]), None)
    assert targets.tolist() == [1, 3, 2, 9] and offsets.tolist() == [0, 2, 2, 4]
    seen = (np.array([3, 7, 9, 1, 9]), np.array([0, 2, 3, 5]))
    targets, offsets = drop_excluded(np.array([3, 1, 3, 2, 9]), np.array([0, 3, 3, 5]), seen)
    assert targets.tolist() == [1, 2] and offsets.tolist() == [0, 1, 1, 2]


# --- several workers


PARALLEL: dict[str, tuple[TrainSettings, dict[str, Any]]] = {
    "full softmax": (changed(label_smoothing=0.1), {}),
    "in batch": (changed(uniform_negatives=0, log_q=False), {}),
    "features": (SETTINGS, {"history": "none", "item_shape": dataclasses.asdict(USER_SHAPE)}),
    "mean": (changed(uniform_negatives=0, log_q=False), {"history": "mean", "history_rows": True}),
    "explicit": (changed(uniform_negatives=0, log_q=False, explicit_negatives=True), {}),
}


def gradients_of(settings: TrainSettings, arguments: dict[str, Any], chosen: list[int], sparse: bool) -> list[Array]:
    towers.SPARSE_ROWS = 1 if sparse else 1_000_000
    learning.UNSEEN_SHARE = 1.0
    from rec_ray.retrieval.learning.gradients import average_gradients

    learner = learner_of(settings, **arguments)
    learner.loss(small_batch(chosen)).backward()
    average_gradients(learner.model)
    found = []
    for parameter in learner.model.parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        found.append(gradient.to_dense().numpy() if gradient.is_sparse else gradient.numpy())
    return found


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    chosen = ([0, 3], [1, 2])[rank]
    for sparse in (True, False):
        for name, (settings, arguments) in PARALLEL.items():
            found[f"{name} {sparse}"] = gradients_of(settings, arguments, chosen, sparse)
    learner = learner_of(changed(uniform_negatives=5))
    found["loss"] = learner.step(small_batch(chosen))
    found["weights"] = [weight.numpy() for weight in weights_of(learner)]
    found["draws"] = torch.randint(1000, (8,), generator=learner.negatives).tolist()
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory, processes: None) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("workers")
    mp.spawn(work, args=(str(folder),), nprocs=2)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("name", PARALLEL)
def test_gradients_of_two_workers_are_those_of_one_with_the_whole_batch(
    two_workers: list[dict[str, Any]], name: str, sparse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(towers, "SPARSE_ROWS", towers.SPARSE_ROWS)
    alone = gradients_of(*PARALLEL[name], [0, 3, 1, 2], sparse)
    assert any(gradient.any() for gradient in alone)
    for found in two_workers:
        for mine, theirs in zip(alone, found[f"{name} {sparse}"], strict=True):
            np.testing.assert_allclose(theirs, mine, rtol=1e-3, atol=1e-6)


def test_workers_stay_equal_and_draw_different_negatives(two_workers: list[dict[str, Any]]) -> None:
    first, second = two_workers
    for mine, theirs in zip(first["weights"], second["weights"], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert first["draws"] != second["draws"]
    assert np.isfinite([first["loss"], second["loss"]]).all()
