"""Candidates that the learner samples: inclusion as often as corrected for, and sums over all items without bias."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from rec_ray.config import TrainSettings
from rec_ray.retrieval.features.batch import FeatureBatch
from rec_ray.retrieval.features.catalogue import Catalogue
from rec_ray.retrieval.features.timelines import TimelineBatch
from rec_ray.retrieval.learning.learner import Learner
from rec_ray.retrieval.learning.losses import inclusion_log_q
from rec_ray.retrieval.model.inference import embed_catalogue
from rec_ray.retrieval.model.towers import TwoTower, build_two_tower

COUNTS = [50, 30, 15, 4, 1]
PROBABILITY = torch.tensor([0, *COUNTS]) / sum(COUNTS)
POSITIVES, UNIFORM, BATCHES = 3, 2, 1000
SETTINGS = TrainSettings(
    batch_size=POSITIVES,
    learning_rate=0.001,
    weight_decay=0.0,
    warmup=0.0,
    temperature=1.0,
    loss="softmax",
    in_batch_negatives=True,
    uniform_negatives=UNIFORM,
    log_q=True,
    explicit_negatives=False,
    label_smoothing=0.0,
    precision="float32",
    seed=0,
)


def no_features(rows: int) -> FeatureBatch:
    return FeatureBatch.from_numpy(
        np.zeros((rows, 0), np.float32), np.zeros(0, np.int64), np.zeros((rows, 0), np.int64), np.zeros((rows, 0))
    )


def catalogue() -> Catalogue:
    n = len(COUNTS)
    known = np.array([False] + [True] * n)
    return Catalogue(pa.array("abcde"), torch.arange(n + 1), known, np.array([0, *COUNTS]), no_features(n + 1))


def model() -> TwoTower:
    torch.manual_seed(1)
    no_shape = {"numeric": 0, "fields": 0, "tokens": 0, "vector": 0}
    towers = build_two_tower(
        vocabulary_size=len(COUNTS) + 1,
        item_shape=no_shape,
        user_shape=no_shape,
        embedding_size=4,
        similarity="dot",
        id_dropout=0.0,
        dropout=0.0,
        history="mean",
    )
    with torch.no_grad():
        towers.item_tower.ids.weight.normal_()
    return towers.eval()


def batch_of(targets: torch.Tensor) -> TimelineBatch:
    """Users without events whose first item is a target."""
    rows = len(targets)
    none, column = torch.zeros(rows, 1, dtype=torch.long), torch.zeros(rows, 1)
    return TimelineBatch(
        item_index=none,
        event_type=none,
        gap_seconds=column,
        length=torch.zeros(rows, dtype=torch.long),
        user_features=no_features(1),
        feature_row=torch.zeros(rows, 2, dtype=torch.long),
        target=torch.stack([targets, torch.zeros_like(targets)], dim=1),
        weight=torch.cat([torch.ones(rows, 1), column], dim=1),
        negative=torch.zeros(rows, 2, dtype=torch.long),
    )


def test_sampled_items_are_included_as_often_as_corrected_for_and_their_sum_is_unbiased() -> None:
    """All users have one vector, so each batch gives the sum of the denominator that its positions share."""
    towers = model()
    learner = Learner(towers, catalogue(), SETTINGS, total_steps=1)
    towers.eval()
    batch = batch_of(torch.tensor([1]))
    history = torch.zeros(len(COUNTS) + 1, 4)
    user = towers.embed_users(history, batch)[0]
    score = (embed_catalogue(towers, learner.catalogue) @ user).detach()
    log_q = inclusion_log_q(PROBABILITY, POSITIVES, UNIFORM, len(COUNTS))
    generator = torch.Generator().manual_seed(0)
    included, sums = torch.zeros(len(COUNTS) + 1), []
    for _ in range(BATCHES):
        targets = torch.multinomial(PROBABILITY, POSITIVES, replacement=True, generator=generator)
        towers.zero_grad()
        loss = learner.loss(batch_of(targets))
        loss.backward()
        gradient = towers.item_tower.ids.weight.grad
        assert gradient is not None
        included += gradient.to_dense().abs().amax(1) > 0
        sums.append((loss.detach() + (score - log_q)[targets].mean()).exp())
    torch.testing.assert_close(included[1:] / BATCHES, log_q[1:].exp(), atol=0.05, rtol=0)
    assert float(torch.stack(sums).mean()) == pytest.approx(float(score[1:].exp().sum()), rel=0.05)
