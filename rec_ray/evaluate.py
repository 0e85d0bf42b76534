"""Model and held-out events into an `Evaluation`: the whole catalogue ranked for every user, baselines beside it.

Encoded timelines stream through Ray Data and each block gives sums that add up; users are seen as they were before the
test, and targets are their positives after it. It never looks at a sample of items or at a training shard, and knows
nothing of Feast, stores or versions.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import torch

from rec_ray.config import EvaluationSettings
from rec_ray.contracts import TEST, Evaluation, TrainingData
from rec_ray.errors import GateError
from rec_ray.logs import LOGGER
from rec_ray.process_cache import once_a_process
from rec_ray.retrieval.baselines import (
    Neighbours,
    PairCounts,
    Popularity,
    count_cooccurrences,
    count_popularity,
    count_transitions,
    fit_item_knn,
    fit_transitions,
)
from rec_ray.retrieval.bundle import TwoTowerBundle
from rec_ray.retrieval.catalogue import Catalogue
from rec_ray.retrieval.feature_batch import FeatureShape
from rec_ray.retrieval.learning import embed_catalogue, embed_queries, seen_items, take_ragged, without
from rec_ray.retrieval.metrics import (
    MetricSums,
    ndcg_at_k,
    novelty,
    recall_at_k,
    reciprocal_rank,
    target_ranks_from_scores,
)
from rec_ray.retrieval.timelines import Timelines, query_batch
from rec_ray.retrieval.top_k import ExactTopK
from rec_ray.storage import Storage

MODEL, POPULARITY, RECENT, KNN, TRANSITIONS = "model", "popularity", "recent_popularity", "item_knn", "item_transitions"
GATE_METRIC = "ndcg@10"
LIST_LENGTH = 10
"""Length of the lists whose coverage and novelty are measured."""
HALF_LIVES = 20
"""Half-lives of recent popularity that the history before the test has."""
_USERS = 1024
_CELLS = 20_000_000
"""Scores of baselines, users times items, that live at one time in a process."""

Array = npt.NDArray[Any]
Ragged = tuple[Array, Array]


def evaluate_model(
    data: TrainingData,
    bundle: TwoTowerBundle,
    settings: EvaluationSettings,
    storage: Storage,
    *,
    exclude_seen: bool,
) -> Evaluation:
    """Rank all items known before the test for every user with a held-out positive.

    exclude_seen: leave items out of the ranking that the user interacted with before the test, as the recommendations
        do; a held-out positive among them is no target then, and is counted.
    """
    timelines = ray.data.read_parquet(data.timelines, filesystem=storage.filesystem)
    names = metric_names(settings.ks)
    ranked = timelines.map_batches(
        rank_targets,
        fn_kwargs={
            "files": ray.put(bundle.to_files()),
            "baselines": _fit_baselines(timelines, bundle.preprocessor.users.shape, data.items),
            "catalogue": data.catalogue,
            "storage": storage,
            "ks": settings.ks,
            "exclude_seen": exclude_seen,
        },
        batch_size=_USERS,
        batch_format="pyarrow",
    )
    sums: dict[str, MetricSums] = {}
    recommended: dict[str, Array] = {}
    facts = {"targets": 0, "seen_targets": 0, "unknown_targets": 0, "known_items": 0}
    for batch in ranked.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in batch.to_pylist():
            shape = (-1, len(names))
            totals, weights = np.array(row["totals"]).reshape(shape), np.array(row["weights"]).reshape(shape)
            arrays = {"metrics": np.array(names), "seed": np.array(0), "totals": totals, "weights": weights}
            method = row["method"]
            if method in sums:
                sums[method].merge(MetricSums.from_arrays(arrays))
            else:
                sums[method] = MetricSums.from_arrays(arrays)
                recommended[method] = np.zeros(data.items + 1, np.int64)
            recommended[method][row["items"]] += 1
            if method == MODEL:
                for name in ("targets", "seen_targets", "unknown_targets"):
                    facts[name] += row[name]
                facts["known_items"] = row["known_items"]
    users = sums[MODEL].users()["mrr"] if MODEL in sums else 0
    if not users:
        LOGGER.warning("no user has a held-out positive event: there are no metrics")
        return Evaluation({}, 0, 0, facts=facts)
    metrics = {method: own.means() for method, own in sums.items()}
    for method, counts in recommended.items():
        metrics[method][f"coverage@{LIST_LENGTH}"] = float(np.count_nonzero(counts) / max(1, facts["known_items"]))
    intervals = {method: own.intervals() for method, own in sums.items()}
    return Evaluation(metrics, users, facts["targets"], intervals, facts)


def metric_names(ks: list[int]) -> list[str]:
    """Return the metrics of every method, in the order of their sums."""
    cut = sorted({*ks, 10})
    return [*(f"recall@{k}" for k in cut), *(f"ndcg@{k}" for k in cut), "mrr", "mrr@20", f"novelty@{LIST_LENGTH}"]


@dataclass(frozen=True)
class _Counts:
    together: PairCounts
    following: PairCounts
    popularity: Array
    recent: Array


def _fit_baselines(timelines: ray.data.Dataset, shape: FeatureShape, items: int) -> ray.ObjectRef:
    """Count what happened before the test, block by block, and return a reference to the fitted baselines."""
    blocks = timelines.materialize().to_arrow_refs()
    ranges = [span for span in ray.get([_time_range.remote(block, shape) for block in blocks]) if span is not None]
    first, last = (min(s for s, _ in ranges), max(e for _, e in ranges)) if ranges else (0, 1)
    counts = [_count_block.remote(block, shape, items + 1, last, (last - first) / HALF_LIVES) for block in blocks]
    while len(counts) > 1:
        counts = [_merge_counts.remote(*counts[i : i + 8]) for i in range(0, len(counts), 8)]
    return _fit.remote(counts[0])


def _positives_before_test(timelines: Timelines) -> tuple[Array, Array, Array]:
    """Return the positives before the test: item index [E], second [E], and where each user's begin [u + 1]."""
    chosen = (timelines.split < TEST) & (timelines.weight > 0)
    user = np.repeat(np.arange(len(timelines)), np.diff(timelines.first))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(user[chosen], minlength=len(timelines)))])
    return timelines.item_index[chosen], timelines.event_seconds[chosen], offsets


@ray.remote(num_cpus=1)
def _time_range(block: pa.Table, shape: FeatureShape) -> tuple[int, int] | None:
    seconds = _positives_before_test(Timelines.from_table(block, shape))[1]
    return (int(seconds.min()), int(seconds.max())) if len(seconds) else None


@ray.remote(num_cpus=1)
def _count_block(block: pa.Table, shape: FeatureShape, item_count: int, now: int, half_life: float) -> _Counts:
    items, seconds, offsets = _positives_before_test(Timelines.from_table(block, shape))
    return _Counts(
        count_cooccurrences(items, offsets, item_count),
        count_transitions(items, offsets, item_count),
        count_popularity(items, item_count),
        count_popularity(items, item_count, times=seconds, now=now, half_life=max(half_life, 1.0)),
    )


@ray.remote(num_cpus=1)
def _merge_counts(first: _Counts, *others: _Counts) -> _Counts:
    merged = first
    for other in others:
        merged = _Counts(
            merged.together.merge(other.together),
            merged.following.merge(other.following),
            merged.popularity + other.popularity,
            merged.recent + other.recent,
        )
    return merged


@ray.remote(num_cpus=1)
def _fit(counts: _Counts) -> dict[str, Popularity | Neighbours]:
    return {
        POPULARITY: Popularity(counts.popularity),
        RECENT: Popularity(counts.recent),
        KNN: fit_item_knn(counts.together),
        TRANSITIONS: fit_transitions(counts.following),
    }


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


def rank_targets(
    batch: pa.Table,
    files: ray.ObjectRef,
    baselines: ray.ObjectRef,
    catalogue: str,
    storage: Storage,
    ks: list[int],
    exclude_seen: bool,
) -> pa.Table:
    """Return `TargetRanker.rank` of a batch; the ranker is loaded once a process."""
    ranker = once_a_process(
        f"ranker {files.hex()}", lambda: TargetRanker(files, baselines, catalogue, storage, ks, exclude_seen)
    )
    return ranker.rank(batch)


class TargetRanker:
    """Ranks the held-out positives of timelines by every method."""

    def __init__(
        self,
        files: ray.ObjectRef,
        baselines: ray.ObjectRef,
        catalogue: str,
        storage: Storage,
        ks: list[int],
        exclude_seen: bool,
    ) -> None:
        """files, baselines: references to the files of a bundle and to the fitted baselines.

        catalogue: folder of the catalogue as of the test cut-off.
        """
        torch.set_num_threads(1)
        self.bundle = TwoTowerBundle.from_files(ray.get(files))
        table = pq.read_table(catalogue, filesystem=storage.filesystem)
        self.catalogue = Catalogue.from_table(table, self.bundle.preprocessor.items.shape)
        self.items = embed_catalogue(self.bundle.model, self.catalogue)
        self.index = ExactTopK(self.items.numpy(), threads=1)
        self.baselines: dict[str, Popularity | Neighbours] = ray.get(baselines)
        self.ks, self.exclude_seen = sorted({*ks, 10}), exclude_seen
        self.names = metric_names(ks)

    @torch.inference_mode()
    def rank(self, batch: pa.Table) -> pa.Table:
        """Return a row a method: sums over the users of a block, and the items that it recommended."""
        timelines = Timelines.from_table(batch, self.bundle.preprocessor.users.shape)
        positives, first = timelines.positives(TEST)
        users = np.flatnonzero(np.diff(first) > 0)
        rows = []
        step = max(1, _CELLS // (len(self.catalogue) + 1))
        for start in range(0, len(users), step):
            rows += self._rank(timelines, users[start : start + step], positives, first)
        return pa.Table.from_pylist(rows, schema=_SUMS)

    def _rank(self, timelines: Timelines, users: Array, positives: Array, first: Array) -> list[dict[str, Any]]:
        targets, offsets = take_ragged(positives, first, users)
        seen = seen_items(timelines, users, TEST)
        known = self.catalogue.known[targets]
        owner = np.repeat(np.arange(len(users)), np.diff(offsets))
        counts = {"unknown_targets": int((~known).sum()), "known_items": int(self.catalogue.known.sum())}
        offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[known], minlength=len(users)))])
        targets, offsets = without(targets[known], offsets, None)
        distinct = len(targets)
        exclude = None
        if self.exclude_seen:
            targets, offsets = without(targets, offsets, seen)
            exclude = seen
        counts |= {"seen_targets": distinct - len(targets), "targets": len(targets)}
        # Users of whom no target is left are not asked about at all.
        asked = np.flatnonzero(np.diff(offsets) > 0)
        if not len(asked):
            none = np.zeros_like(MetricSums(self.names).totals).reshape(-1)
            return [{"method": MODEL, "totals": none, "weights": none, "items": [], **counts}]
        if exclude is not None:
            exclude = take_ragged(exclude[0], exclude[1], asked)
        targets, offsets = take_ragged(targets, offsets, asked)
        users = users[asked]
        length = int(self.bundle.arguments["history_length"])
        query = query_batch(timelines, users, split=TEST, query=1, history_length=length)
        vectors = embed_queries(self.bundle.model, self.items, query).numpy()
        allowed = self.catalogue.known
        ranks = self.index.target_ranks(vectors, targets, offsets, exclude, allowed)
        lists = self.index.search(vectors, LIST_LENGTH, exclude, allowed)[0]
        rows = [{**self._sums(MODEL, timelines, users, ranks, offsets, lists), **counts}]
        items, _, begin = _positives_before_test(timelines)
        history = take_ragged(items, begin, users)
        for method, baseline in self.baselines.items():
            scores = np.where(allowed, baseline.scores(*history), -np.inf)
            if exclude is not None:
                scores[np.repeat(np.arange(len(users)), np.diff(exclude[1])), exclude[0]] = -np.inf
            ranks = target_ranks_from_scores(scores, targets, offsets)
            rows.append(self._sums(method, timelines, users, ranks, offsets, _best(scores, LIST_LENGTH)))
        return rows

    def _sums(
        self, method: str, timelines: Timelines, users: Array, ranks: Array, offsets: Array, lists: Array
    ) -> dict[str, Any]:
        sums = MetricSums(self.names)
        values = {f"recall@{k}": recall_at_k(ranks, offsets, k) for k in self.ks}
        values |= {f"ndcg@{k}": ndcg_at_k(ranks, offsets, k) for k in self.ks}
        values |= {"mrr": reciprocal_rank(ranks, offsets), "mrr@20": reciprocal_rank(ranks, offsets, 20)}
        count = self.catalogue.count
        values[f"novelty@{LIST_LENGTH}"] = novelty(lists, count, int(count.sum()))
        sums.add(_stable_numbers(timelines.user_ids.take(pa.array(users))), values)
        return {
            "method": method,
            "totals": sums.totals.reshape(-1),
            "weights": sums.weights.reshape(-1),
            "items": np.unique(lists[lists >= 0]),
        }


_SUMS = pa.schema(
    [
        ("method", pa.string()),
        ("totals", pa.list_(pa.float64())),
        ("weights", pa.list_(pa.float64())),
        ("items", pa.list_(pa.int64())),
        *((name, pa.int64()) for name in ("targets", "seen_targets", "unknown_targets", "known_items")),
    ]
)


def _best(scores: Array, count: int) -> Array:
    """Return the items of the `count` best scores of each row in rank order, -1 where none is left."""
    count = min(count, scores.shape[1])
    best = np.argpartition(-scores, count - 1, axis=1)[:, :count]
    best.sort(axis=1)
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    best = np.take_along_axis(best, order, axis=1)
    return np.where(np.take_along_axis(scores, best, axis=1) > -np.inf, best, -1)


def _stable_numbers(user_ids: pa.Array) -> Array:
    """Return a number for each user that does not depend on the block it came in: [u] int64."""
    return np.array([zlib.crc32(user.encode()) for user in user_ids.to_pylist()], np.int64)
