"""How fast training is, as JSON: `python tests/bench_training.py [NAME ...]`; its memory is in `bench_line`.

Each bench compares two things in one run on one machine, so that its ratio says something on any machine. Nothing here
is a test.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from benching import make_shop

ROOT = Path(__file__).resolve().parents[1]
REPEATS = 3
STEADY_EPOCHS = 4
"""Epochs of one training of which the first, which warms caches up, is left out."""


def bench_ray_train() -> dict[str, Any]:
    """Positives a second through Ray Train over those of the same loop in one process with tensors in memory."""
    from rec_ray.config.loading import load_settings
    from rec_ray.distributed.runtime import open_ray

    with tempfile.TemporaryDirectory() as temporary:
        project = Path(temporary) / "shop"
        make_shop(project, 200_000)
        settings = load_settings(project / "rec_ray.yaml", ["model.history=transformer", "train.ahead=1"])
        open_ray(settings.ray)
        data, storage = encode(settings, Path(temporary) / "store")
        through_ray, plain, first_steps = [], [], []
        for repeat in range(REPEATS):
            trained = train_through_ray(settings, data, storage, f"bench{repeat}")
            through_ray.append(statistics.median(epoch.examples_per_second for epoch in trained.epochs[1:]))
            first_steps.append(trained.facts.seconds_to_first_step)
            plain.append(statistics.median(train_plainly(settings, data, storage)[1:]))
        ratios = [ours / theirs for ours, theirs in zip(through_ray, plain, strict=True)]
        return {
            "positives_per_second_ray_train": round(statistics.median(through_ray)),
            "positives_per_second_plain": round(statistics.median(plain)),
            "ratio": round(statistics.median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
            "seconds_from_fit_to_first_step": [round(seconds, 1) for seconds in first_steps],
        }


def encode(settings: Any, folder: Path) -> tuple[Any, Any]:
    """Load and encode a project's data into a store."""
    from datetime import UTC, datetime

    from rec_ray.data.load_features import load_features
    from rec_ray.data.training_data import prepare_training_data
    from rec_ray.runs.context import open_feature_store
    from rec_ray.storage.object_store import open_storage

    store = open_feature_store(settings)
    tables = load_features(store, settings.feast, settings.features, settings.evaluation, as_of=datetime.now(UTC))
    storage = open_storage(str(folder))
    return prepare_training_data(tables, settings.features, settings.evaluation.split, storage, "data"), storage


def train_through_ray(settings: Any, data: Any, storage: Any, run_id: str) -> Any:
    """Train as the program does, without validation users, so that nothing but learning is timed."""
    from rec_ray.training.trainer import train_two_tower

    train = settings.train.model_copy(update={"epochs": STEADY_EPOCHS, "refit": "off", "patience": 100})
    return train_two_tower(
        data,
        settings.model,
        train,
        settings.ray,
        storage,
        run_id=run_id,
        validation_users=1,
        exclude_seen=True,
        metadata={},
    )


def train_plainly(settings: Any, data: Any, storage: Any) -> list[float]:
    """Do the same epochs in this process; return the positives a second of each."""
    import pyarrow.parquet as pq
    import torch

    from rec_ray.retrieval.features.catalogue import Catalogue
    from rec_ray.retrieval.features.timelines import Timelines, training_windows
    from rec_ray.retrieval.learning.learner import Learner, shuffled_batches
    from rec_ray.retrieval.model.towers import build_two_tower
    from rec_ray.schema import Split

    torch.set_num_threads(settings.train.cpus_per_worker)
    shapes = data.preprocessor.items.shape, data.preprocessor.users.shape
    timelines = Timelines.from_table(pq.read_table(data.timelines, filesystem=storage.filesystem), shapes[1])
    catalogue = Catalogue.from_table(pq.read_table(data.catalogue, filesystem=storage.filesystem), shapes[0])
    windows = training_windows(timelines, settings.model.history_length, Split.VALIDATION)
    model = build_two_tower(
        vocabulary_size=data.preprocessor.vocabulary_size,
        item_shape=asdict(shapes[0]),
        user_shape=asdict(shapes[1]),
        event_types=len(data.preprocessor.event_types) + 1,
        **settings.model.model_dump(),
    )
    steps = len(shuffled_batches(windows, settings.train.batch_size, 0))
    learner = Learner(
        model,
        catalogue,
        settings.train,
        total_steps=STEADY_EPOCHS * steps,
    )
    speeds = []
    for epoch in range(1, STEADY_EPOCHS + 1):
        started, positives = time.perf_counter(), 0
        for batch in learner.batches(timelines, windows, epoch):
            learner.step(batch)
            positives += int((batch.weight > 0).sum())
        speeds.append(positives / (time.perf_counter() - started))
    return speeds


def bench_catalogue_size() -> dict[str, Any]:
    """Median time of a step at 1,000,000 items over that at 20,000, with the same batches, turn by turn."""
    import pyarrow as pa
    import torch

    from rec_ray.config import ModelSettings, TrainSettings
    from rec_ray.retrieval.features.batch import FeatureBatch, FeatureShape
    from rec_ray.retrieval.features.catalogue import Catalogue
    from rec_ray.retrieval.features.timelines import TimelineBatch
    from rec_ray.retrieval.learning.learner import Learner
    from rec_ray.retrieval.model.towers import build_two_tower

    torch.set_num_threads(1)
    train, model_settings = TrainSettings(), ModelSettings()
    shape, width, batch_size = FeatureShape(), 9, train.batch_size // 10
    rng = np.random.default_rng(0)

    def learner_of(items: int) -> Learner:
        catalogue = Catalogue(
            pa.nulls(items, pa.string()),
            torch.arange(items + 1),
            np.arange(items + 1) > 0,
            (np.arange(items + 1) > 0).astype(np.int64),
            FeatureBatch.empty(items + 1),
        )
        model = build_two_tower(
            vocabulary_size=items + 1,
            item_shape=asdict(shape),
            user_shape=asdict(shape),
            **{**model_settings.model_dump(), "history": "transformer"},
        )
        return Learner(model, catalogue, train, total_steps=10_000)

    def batch_of(items: int) -> TimelineBatch:
        drawn = torch.from_numpy(rng.integers(1, items + 1, (batch_size, width + 1)))
        return TimelineBatch(
            item_index=drawn[:, :width],
            event_type=torch.zeros(batch_size, width, dtype=torch.long),
            gap_seconds=torch.zeros(batch_size, width),
            length=torch.full((batch_size,), width),
            user_features=FeatureBatch.empty(1),
            feature_row=torch.zeros(batch_size, width + 1, dtype=torch.long),
            target=drawn,
            weight=torch.ones(batch_size, width + 1),
            negative=torch.zeros(batch_size, width + 1, dtype=torch.long),
        )

    sizes = (20_000, 1_000_000)
    learners = {items: learner_of(items) for items in sizes}
    seconds: dict[int, list[float]] = {items: [] for items in sizes}
    for step in range(70):
        for items in sizes:
            batch = batch_of(items)
            started = time.perf_counter()
            learners[items].step(batch)
            if step >= 10:
                seconds[items].append(time.perf_counter() - started)
    medians = {items: statistics.median(times) for items, times in seconds.items()}
    return {
        "milliseconds": {f"{items:,} items": round(1000 * median, 2) for items, median in medians.items()},
        "ratio": round(medians[1_000_000] / medians[20_000], 3),
    }


BENCHES: dict[str, Callable[[], dict[str, Any]]] = {
    "catalogue_size": bench_catalogue_size,
    "ray_train": bench_ray_train,
}


def main() -> None:
    """Run the benches named, or all, and print one line of JSON for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHES)}; all by default")
    arguments = parser.parse_args()
    for name in arguments.names or BENCHES:
        print(json.dumps({name: BENCHES[name]()}), flush=True)


if __name__ == "__main__":
    main()
