"""Model and held-out events into an `Evaluation`: the whole catalogue ranked for every user, baselines beside the model.

Encoded timelines stream through Ray Data and each block gives sums that add up; users are seen as they were before the
test, and targets are their positives after it. It never looks at a sample of items or at a training shard, and knows
nothing of Feast, stores or versions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy

from rec_ray.config import EvaluationSettings, RaySettings
from rec_ray.contracts import TEST, Evaluation, TrainingData
from rec_ray.errors import GateError
from rec_ray.logs import LOGGER
from rec_ray.retrieval.bundle import TwoTowerBundle
from rec_ray.retrieval.catalogue import Catalogue
from rec_ray.retrieval.learning import embed_catalogue, embed_queries, seen_items, take_ragged, without
from rec_ray.retrieval.metrics import ndcg_at_k, recall_at_k, reciprocal_rank, target_ranks
from rec_ray.retrieval.timelines import Timelines, query_batch
from rec_ray.storage import Storage

MODEL, POPULARITY = "model", "popularity"
GATE_METRIC = "ndcg@10"
_USERS = 1024
_SHARE = 0.5

Array = npt.NDArray[Any]


def evaluate_model(
    data: TrainingData,
    bundle: TwoTowerBundle,
    settings: EvaluationSettings,
    ray_settings: RaySettings,
    storage: Storage,
    *,
    exclude_seen: bool,
) -> Evaluation:
    """Rank all items known before the test for every user with a held-out positive.

    exclude_seen: leave items out of the ranking that the user interacted with before the test, as the recommendations
        do; a held-out positive among them is no target then, and is counted.
    """
    dataset = ray.data.read_parquet(data.timelines, filesystem=storage.filesystem).map_batches(
        RankTargets,
        fn_constructor_kwargs={
            "files": ray.put(bundle.to_files()),
            "catalogue": data.catalogue,
            "storage": storage,
            "ks": sorted({*settings.ks, 10}),
            "exclude_seen": exclude_seen,
            "threads": ray_settings.threads,
        },
        batch_size=_USERS,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=1),
        num_cpus=_SHARE,
    )
    sums: dict[tuple[str, str], float] = {}
    recommended: dict[str, set[int]] = {}
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in batch.to_pylist():
            key = (row["method"], row["metric"])
            sums[key] = sums.get(key, 0.0) + row["total"]
            recommended.setdefault(row["method"], set()).update(row["items"])
    users = int(sums.get((MODEL, "users"), 0))
    targets = int(sums.get((MODEL, "targets"), 0))
    if not users:
        LOGGER.warning("no user has a positive event after the test cut-off: the metrics are empty")
    metrics: dict[str, dict[str, float]] = {}
    counts = ("users", "targets", "seen_targets", "unknown_targets")
    for (method, metric), total in sums.items():
        if metric not in counts and users:
            metrics.setdefault(method, {})[metric] = total / users
    known = int(sums.get((MODEL, "known_items"), 0))
    del known
    for method, items in recommended.items():
        if users:
            metrics[method]["coverage@10"] = len(items) / max(1, data.items)
    facts = {name: int(sums.get((MODEL, name), 0)) for name in counts[2:]}
    return Evaluation(metrics, users, targets, facts)


def check_gate(evaluation: Evaluation, settings: EvaluationSettings) -> str:
    """Compare the model with popularity and return `passed`, `warned` or `off`.

    Raises:
        GateError: the model is worse by more than the margin and `evaluation.gate` is `refuse`.
    """
    if settings.gate == "off" or MODEL not in evaluation.metrics:
        return "off"
    model, popularity = (evaluation.metrics[method][GATE_METRIC] for method in (MODEL, POPULARITY))
    if model >= popularity * (1 - settings.gate_margin):
        return "passed"
    figures = f"the model's NDCG@10 is {model:.4f}, popularity's {popularity:.4f} over {evaluation.users:,} users"
    if settings.gate == "refuse":
        raise GateError(f"{figures}: the model is stored and not published (evaluation.gate: refuse)")
    LOGGER.warning("%s; it is published all the same (evaluation.gate: warn)", figures)
    return "warned"


@dataclass
class _Sums:
    totals: dict[tuple[str, str], float] = field(default_factory=dict)
    items: dict[str, set[int]] = field(default_factory=dict)

    def add(self, method: str, metric: str, total: float) -> None:
        self.totals[method, metric] = self.totals.get((method, metric), 0.0) + total


class RankTargets:
    """Ranks the held-out positives of timelines; model and catalogue are loaded once an actor."""

    def __init__(
        self,
        files: ray.ObjectRef,
        catalogue: str,
        storage: Storage,
        ks: list[int],
        exclude_seen: bool,
        threads: int | None,
    ) -> None:
        """files: reference to the files of a bundle; catalogue: folder of the catalogue as of the test cut-off."""
        if threads:
            torch.set_num_threads(threads)
        self.bundle = TwoTowerBundle.from_files(ray.get(files))
        table = pq.read_table(catalogue, filesystem=storage.filesystem)
        self.catalogue = Catalogue.from_table(table, self.bundle.preprocessor.items.shape)
        self.items = embed_catalogue(self.bundle.model, self.catalogue)
        self.popularity = self.catalogue.count.astype(np.float32)[:, None]
        self.ks, self.exclude_seen = ks, exclude_seen

    @torch.inference_mode()
    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return sums over the users of a block: `method`, `metric`, `total` and the items that were recommended."""
        timelines = Timelines.from_table(batch, self.bundle.preprocessor.users.shape)
        sums = _Sums()
        positives, first = timelines.positives(TEST)
        users = np.flatnonzero(np.diff(first) > 0)
        if len(users):
            self._rank(timelines, users, positives, first, sums)
        rows = [
            {"method": method, "metric": metric, "total": total, "items": sorted(sums.items.pop(method, ()))}
            for (method, metric), total in sums.totals.items()
        ]
        schema = pa.schema(
            [("method", pa.string()), ("metric", pa.string()), ("total", pa.float64()), ("items", pa.list_(pa.int64()))]
        )
        return pa.Table.from_pylist(rows, schema=schema)

    def _rank(self, timelines: Timelines, users: Array, positives: Array, first: Array, sums: _Sums) -> None:
        targets, offsets = take_ragged(positives, first, users)
        total = len(targets)
        seen = seen_items(timelines, users, TEST)
        known = self.catalogue.known[targets]
        owner = np.repeat(np.arange(len(users)), np.diff(offsets))
        targets = targets[known]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[known], minlength=len(users)))])
        sums.add(MODEL, "unknown_targets", total - len(targets))
        distinct, distinct_offsets = without(targets, offsets, None)
        if self.exclude_seen:
            targets, offsets = without(targets, offsets, seen)
        else:
            targets, offsets = distinct, distinct_offsets
        sums.add(MODEL, "seen_targets", len(distinct) - len(targets))
        sums.add(MODEL, "targets", len(targets))
        sums.add(MODEL, "users", int((np.diff(offsets) > 0).sum()))
        length = int(self.bundle.arguments["history_length"])
        query = query_batch(timelines, users, split=TEST, query=1, history_length=length)
        vectors = embed_queries(self.bundle.model, self.items, query).numpy()
        exclude = seen if self.exclude_seen else None
        asked = np.diff(offsets) > 0
        for method, queries, items in (
            (MODEL, vectors, self.items.numpy()),
            (POPULARITY, np.ones((len(users), 1), np.float32), self.popularity),
        ):
            ranks = target_ranks(queries, items, targets, offsets, exclude=exclude, allowed=self.catalogue.known)
            for k in self.ks:
                sums.add(method, f"recall@{k}", float(recall_at_k(ranks, offsets, k)[asked].sum()))
                sums.add(method, f"ndcg@{k}", float(ndcg_at_k(ranks, offsets, k)[asked].sum()))
            sums.add(method, "mrr", float(reciprocal_rank(ranks, offsets)[asked].sum()))
