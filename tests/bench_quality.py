"""NDCG@10 of a fresh project's defaults beside the best counting method on small shops, as JSON.

`make bench BENCH=quality`, or `python tests/bench_quality.py [SHOP ...] [--seeds 3] [--set section.key=value]`. Each
shop is generated, made a project by `init_project`, encoded and trained in this process by the loop of the training
workers, without a refit, and judged on the events after the test cut-off. Nothing here is a test.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from quality_shops import SHOPS, Shop, write_shop

AS_OF = datetime(2026, 1, 1, tzinfo=UTC)
DATA_SEED, OF_A_SEED = 500, 1000


@dataclass(frozen=True)
class Encoded:
    """Encoded timelines and catalogue of a shop, and what was fitted before."""

    timelines: pa.Table
    catalogue: pa.Table
    preprocessor: Any


def encode(settings: Any, data: Path) -> Encoded:
    """Encode the tables of a project, joined point in time by hand: every user and item has one row."""
    from rec_ray.data.events import as_events, split_times, survey_events, with_query_rows
    from rec_ray.retrieval.features.catalogue import catalogue_rows
    from rec_ray.retrieval.features.encoding import Labelling, encode_timelines, label_events
    from rec_ray.retrieval.features.preprocessing import Preprocessor, collect_statistics, fit_features
    from rec_ray.schema import EVENT_TIMESTAMP, EVENT_TYPE, EVENT_VALUE, ITEM_ID, USER_ID

    features, interaction = settings.features, settings.features.interaction
    table = pq.read_table(data / "interactions.parquet")
    fields = {USER_ID: "user_id", ITEM_ID: "item_id", EVENT_TIMESTAMP: "event_timestamp"}
    fields |= {EVENT_TYPE: interaction.type_field} if interaction.type_field else {}
    fields |= {EVENT_VALUE: interaction.value_field} if interaction.value_field else {}
    raw = pa.table({name: table[field] for name, field in fields.items()})
    times = split_times([survey_events(raw, AS_OF)], settings.evaluation, AS_OF)
    instants = [times.validation_start, times.test_start, times.as_of]
    rows = with_query_rows(as_events(raw, 0, AS_OF), instants)
    moments = rows[EVENT_TIMESTAMP].cast(pa.int64()).to_numpy()
    for name, column in _as_of(data / "users.parquet", "user_id", rows[USER_ID], moments, list(features.user)).items():
        rows = rows.append_column(name, column)
    ids = pq.read_table(data / "items.parquet")["item_id"].combine_chunks().sort()
    test = np.full(len(ids), int(times.test_start.timestamp() * 1e6))
    items = pa.table(
        {ITEM_ID: ids, **_as_of(data / "items.parquet", "item_id", ids, test, [*features.item, "event_timestamp"])}
    )
    labelling = Labelling.of(interaction, settings.evaluation.split, times)
    events = label_events(rows, ids, labelling)
    events = label_events(rows, ids, labelling.with_value_maximum(events.value_maximum))
    fit = {"text_buckets": features.text_buckets, "max_vocabulary": features.max_vocabulary}
    known = pc.is_valid(items["event_timestamp"])
    of_users = collect_statistics(events.table.filter(pa.array(events.is_training)), features.user)
    preprocessor = Preprocessor(
        users=fit_features(of_users, features.user, **fit),
        items=fit_features(collect_statistics(items.filter(known), features.item), features.item, **fit),
        item_ids=tuple(sorted(set(events.table[ITEM_ID].filter(pa.array(events.weight > 0)).to_pylist()))),
        event_types=tuple(sorted(set(events.table[EVENT_TYPE].drop_null().to_pylist()))),
    )
    count = np.bincount(events.item_index[events.is_training & (events.weight > 0)], minlength=len(ids) + 1)
    before = np.bincount(events.item_index[events.is_before_test], minlength=len(ids) + 1)
    catalogue = catalogue_rows(
        np.arange(1, len(ids) + 1),
        ids,
        preprocessor.encode_item_ids(ids),
        known.to_numpy(zero_copy_only=False) | (before[1:] > 0),
        count[1:],
        preprocessor.items.encode(items),
    )
    return Encoded(encode_timelines(events, preprocessor), catalogue, preprocessor)


def _as_of(path: Path, key: str, ids: Any, moments: Any, fields: Sequence[str]) -> dict[str, pa.Array]:
    """Return fields of the row of each id, null where the row is later than the moment in microseconds."""
    from rec_ray.retrieval.features.columns import index_of

    table = pq.read_table(path)
    place = index_of(ids, table[key].combine_chunks().cast(pa.string()))
    since = table["event_timestamp"].combine_chunks().cast(pa.int64()).to_numpy()
    missing = (place < 0) | (since[np.maximum(place, 0)] > moments)
    rows = pa.array(np.where(missing, 0, place), mask=missing)
    return {name: table[name].combine_chunks().take(rows) for name in fields}


def train(settings: Any, encoded: Encoded, folder: Path) -> tuple[Any, Any]:
    """Train as a worker of Ray Train does; return the progress and the bundle."""
    import torch

    from rec_ray.retrieval.model.bundle import TwoTowerBundle
    from rec_ray.retrieval.model.towers import build_two_tower
    from rec_ray.storage.object_store import open_storage
    from rec_ray.training.checkpoint import Progress
    from rec_ray.training.worker import LEARN, TrainingPlan, train_stages

    for name in ("timelines", "catalogue"):
        (folder / name).mkdir()
        pq.write_table(getattr(encoded, name), folder / name / "part.parquet")
    storage, preprocessor = open_storage(str(folder)), encoded.preprocessor
    shapes = preprocessor.items.shape, preprocessor.users.shape
    plan = TrainingPlan(
        arguments={
            "vocabulary_size": preprocessor.vocabulary_size,
            "item_shape": asdict(shapes[0]),
            "user_shape": asdict(shapes[1]),
            "event_types": len(preprocessor.event_types) + 1,
            **settings.model.model_dump(exclude={"history"}),
        },
        history=settings.model.history,
        user_shape=shapes[1],
        item_shape=shapes[0],
        timelines=storage.path("timelines"),
        catalogue=storage.path("catalogue"),
        catalogue_now=storage.path("catalogue"),
        items=encoded.catalogue.num_rows,
        storage=storage,
        train=settings.train.model_copy(update={"refit": "off"}),
        history_length=settings.model.history_length,
        validation_users=settings.evaluation.validation_users,
        exclude_seen=settings.candidates.exclude_seen,
        threads=1,
        started=time.time(),
    )
    progress = train_stages(
        plan, Progress(), rank=0, world=1, device=torch.device("cpu"), send=lambda metrics, checkpoint: None
    )
    history = progress.attempts[progress.chosen].attempt.history
    arguments = {**plan.arguments, "history": history}
    model = build_two_tower(**arguments)
    model.load_state_dict(progress.models[LEARN])
    return progress, TwoTowerBundle(model.eval(), arguments, preprocessor, {})


def judge(encoded: Encoded, bundle: Any, *, exclude_seen: bool) -> dict[str, float]:
    """Return NDCG@10 of the model and of every counting method, over the same users."""
    from rec_ray.retrieval.features.catalogue import Catalogue
    from rec_ray.retrieval.features.timelines import Timelines
    from rec_ray.retrieval.metrics.baselines import (
        Popularity,
        count_cooccurrences,
        count_popularity,
        count_transitions,
        fit_item_knn,
        fit_random_walk,
        fit_transitions,
    )
    from rec_ray.retrieval.metrics.holdout import collect_held_out, positives_before_test, users_with_targets
    from rec_ray.retrieval.metrics.metrics import ndcg_at_k
    from rec_ray.retrieval.metrics.rankers import CountingRanker, TowerRanker

    timelines = Timelines.from_table(encoded.timelines, encoded.preprocessor.users.shape)
    catalogue = Catalogue.from_table(encoded.catalogue, encoded.preprocessor.items.shape)
    held_out, _ = collect_held_out(timelines, users_with_targets(timelines), catalogue, exclude_seen=exclude_seen)
    items, seconds, offsets = positives_before_test(timelines)
    count, span = len(catalogue) + 1, int(seconds.max() - seconds.min())
    recent = count_popularity(items, count, times=seconds, now=int(seconds.max()), half_life=max(span / 20, 1.0))
    together = count_cooccurrences(items, offsets, count)
    counted = {
        "popularity": Popularity(count_popularity(items, count)),
        "recent_popularity": Popularity(recent),
        "item_knn": fit_item_knn(together),
        "random_walk": fit_random_walk(together),
        "item_transitions": fit_transitions(count_transitions(items, offsets, count)),
    }
    methods = {"model": TowerRanker(bundle, catalogue)}
    methods |= {name: CountingRanker(one, catalogue) for name, one in counted.items()}
    ranks = {name: method.rank(held_out).ranks for name, method in methods.items()}
    return {name: float(np.nanmean(ndcg_at_k(own, held_out.offsets, 10))) for name, own in ranks.items()}


def bench_shop(shop: Shop, data_seed: int, seed: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Make, train and judge one shop. data_seed: of the shop; seed: of the training."""
    from rec_ray.config.loading import load_settings
    from rec_ray.sample.project import init_project

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_shop(folder / "source", shop, data_seed)
        project = init_project(folder / "project", folder / "source")
        settings = load_settings(project.settings, [f"train.seed={seed}", *overrides], environ={})
        encoded = encode(settings, project.repo / "data")
        started = time.perf_counter()
        (folder / "store").mkdir()
        progress, bundle = train(settings, encoded, folder / "store")
        seconds = time.perf_counter() - started
        found = judge(encoded, bundle, exclude_seen=settings.candidates.exclude_seen)
    best = max((name for name in found if name != "model"), key=lambda name: found[name])
    chosen = progress.attempts[progress.chosen]
    return {
        "model": round(found["model"], 4),
        "best_counting": {best: round(found[best], 4)},
        "ratio": round(found["model"] / found[best], 3),
        "seconds": round(seconds, 1),
        "history": chosen.attempt.history,
        "effective_rank": round(chosen.best.effective_rank, 1),
        "mean_cosine": round(chosen.best.mean_cosine, 2),
        "attempts": {
            f"{one.attempt.history}{' (careful)' if one.attempt.careful else ''}": round(one.best.validation_ndcg, 4)
            for one in progress.attempts
        },
    }


def main() -> None:
    """Print a line of JSON for each shop and seed, then the mean and the least ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("shops", nargs="*", help=f"of {', '.join(SHOPS)}; all by default")
    parser.add_argument("--seeds", type=int, default=1, help="shops and trainings of each kind")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="settings beside the defaults")
    arguments = parser.parse_args()
    ratios = []
    for number, (name, shop) in enumerate(SHOPS.items()):
        if arguments.shops and name not in arguments.shops:
            continue
        for seed in range(arguments.seeds):
            found = bench_shop(shop, DATA_SEED + number + OF_A_SEED * seed, seed, arguments.set)
            ratios.append(found["ratio"])
            print(json.dumps({f"{name} {seed}": found}), flush=True)
    print(json.dumps({"mean_ratio": round(float(np.mean(ratios)), 3), "least_ratio": min(ratios)}))


if __name__ == "__main__":
    main()
