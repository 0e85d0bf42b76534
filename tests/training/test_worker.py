"""Attempts of a training in this process: both histories on small data, and an honest end where nothing is learned."""

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rec_ray.config import ModelSettings, TrainSettings
from rec_ray.retrieval.features.batch import FeatureShape
from rec_ray.retrieval.features.catalogue import catalogue_rows
from rec_ray.retrieval.features.preprocessing import EncodedFeatures
from rec_ray.retrieval.features.timelines import QUERIES, TIMELINES
from rec_ray.retrieval.learning.attempts import Attempt
from rec_ray.schema import Split
from rec_ray.storage.object_store import open_storage
from rec_ray.training.checkpoint import Progress
from rec_ray.training.worker import TrainingPlan, train_stages

TRAIN, VALIDATION, TEST = Split

USERS, ITEMS, GROUPS, LENGTH = 120, 40, 4, 14
NOTHING = FeatureShape()


def write_data(folder: Path, *, learnable: bool) -> None:
    """Users take items of one group, or any item at all; the last two events are validation and test."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, GROUPS, USERS)
    items = rng.integers(0, ITEMS // GROUPS, (USERS, LENGTH)) * GROUPS + group[:, None]
    if not learnable:
        items = rng.integers(0, ITEMS, (USERS, LENGTH))
    split = [TRAIN] * (LENGTH - 2) + [VALIDATION, TEST]
    rows: dict[str, list[Any]] = {
        "user_id": [f"u{user}" for user in range(USERS)],
        "item_index": (items + 1).tolist(),
        "event_type": [[0] * LENGTH] * USERS,
        "event_seconds": [list(range(LENGTH))] * USERS,
        "weight": [[1.0] * LENGTH] * USERS,
        "split": [split] * USERS,
        "feature_row": [[0] * (LENGTH + QUERIES)] * USERS,
        **{name: [[]] * USERS for name in ("user_numeric", "user_tokens", "user_token_counts", "user_vector")},
    }
    count = np.bincount(items[:, :-2].reshape(-1), minlength=ITEMS)
    features = EncodedFeatures(
        np.zeros((ITEMS, 0), np.float32),
        np.zeros(0, np.int32),
        np.zeros((ITEMS, 0), np.int32),
        np.zeros((ITEMS, 0), np.float32),
    )
    ids = pa.array([f"i{item:02}" for item in range(ITEMS)])
    index = np.arange(1, ITEMS + 1)
    catalogue = catalogue_rows(index, ids, index, np.ones(ITEMS, bool), count, features)
    for name, table in (("timelines", pa.table(rows, schema=TIMELINES)), ("catalogue", catalogue)):
        (folder / name).mkdir()
        pq.write_table(table, folder / name / "part.parquet")


def train(
    folder: Path,
    progress: Progress | None = None,
    *,
    history: str = "auto",
    reports: list[Any] | None = None,
    **changes: Any,
) -> Progress:
    storage = open_storage(str(folder))
    model = ModelSettings(embedding_size=16, layers=1, dropout=0.0)
    architecture = model.model_dump(exclude={"history"})
    settings = TrainSettings(**{"batch_size": 128, "refit": "off", "learning_rate": 0.01, **changes})
    shapes = {"item_shape": asdict(NOTHING), "user_shape": asdict(NOTHING)}
    plan = TrainingPlan(
        arguments={"vocabulary_size": ITEMS + 1, "event_types": 1, **shapes, **architecture},
        history=history,
        user_shape=NOTHING,
        item_shape=NOTHING,
        timelines=storage.path("timelines"),
        catalogue=storage.path("catalogue"),
        catalogue_now=storage.path("catalogue"),
        items=ITEMS,
        storage=storage,
        train=settings,
        history_length=model.history_length,
        validation_users=1000,
        exclude_seen=False,
        threads=1,
        started=time.time(),
    )

    def send(metrics: dict[str, Any], checkpoint: str | None) -> None:
        if reports is not None:
            assert checkpoint is not None
            reports.append((metrics, Progress.read(checkpoint)))

    threads = torch.get_num_threads()
    try:
        return train_stages(plan, progress or Progress(), rank=0, world=1, device=torch.device("cpu"), send=send)
    finally:
        torch.set_num_threads(threads)


def test_both_histories_are_tried_the_better_is_kept_and_a_stopped_run_goes_on_alike(tmp_path: Path) -> None:
    write_data(tmp_path, learnable=True)
    reports: list[Any] = []
    whole = train(tmp_path, epochs=4, refit="full", refit_check=False, reports=reports)
    mean, transformer = whole.attempts
    assert (mean.attempt, transformer.attempt) == (Attempt("mean"), Attempt("transformer"))
    assert mean.done and transformer.done and whole.finished == ["publish"]
    best = [record.best.validation_ndcg for record in whole.attempts if record.best is not None]
    assert best[whole.chosen] == max(best)
    assert "few enough to try both" in whole.reason
    for record in whole.attempts:
        assert record.begun and not record.has_collapsed(ITEMS)
        assert record.best is not None and record.best.effective_rank > 2 and record.best.mean_cosine < 0.9
        assert all(0 < epoch.chance < np.log(ITEMS) + 0.1 for epoch in record.epochs)
    history = whole.attempts[whole.chosen].attempt.history
    blocks = "user_tower.history.blocks.0.norm_attention.weight" in whole.models["publish"]
    assert blocks == (history == "transformer"), "the refit is of the chosen history"
    # Stopped in the second attempt, the run goes on to the same figures.
    stopped = next(one for metrics, one in reports if (metrics["attempt"], metrics["epoch"]) == (1, 2))
    again = train(tmp_path, stopped, epochs=4, refit="full", refit_check=False)
    assert [[epoch.loss for epoch in one.epochs] for one in again.attempts] == [
        pytest.approx([epoch.loss for epoch in one.epochs]) for one in whole.attempts
    ]
    assert again.chosen == whole.chosen


def test_where_nothing_can_be_learned_one_careful_attempt_follows_and_the_end_is_a_collapse(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_data(tmp_path, learnable=False)
    with caplog.at_level(logging.INFO, logger="rec_ray"):
        progress = train(tmp_path, epochs=2, patience=1, learning_rate=1e-4)
    attempts = [record.attempt for record in progress.attempts]
    assert attempts == [Attempt("mean"), Attempt("transformer"), Attempt("mean", careful=True)]
    assert [len(record.epochs) for record in progress.attempts] == [2, 2, 2], "not stopped before it has begun"
    assert progress.attempts[progress.chosen].has_collapsed(ITEMS)
    assert any("training collapsed: loss" in message for message in caplog.messages)


def test_a_history_that_is_set_is_the_only_attempt(tmp_path: Path) -> None:
    write_data(tmp_path, learnable=True)
    progress = train(tmp_path, epochs=1, history="none")
    assert [record.attempt for record in progress.attempts][:1] == [Attempt("none")]
    assert progress.reason == "model.history is set to none"
