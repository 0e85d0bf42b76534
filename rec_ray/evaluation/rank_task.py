"""Tasks of the evaluation that rank the held-out targets by every method, one block of users at a time.

Input: encoded timelines as Arrow batches. Output: one row per batch, with sums that add up and a few example users.
Models and counted baselines are loaded once per process.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from rec_ray.config import CandidateSettings
from rec_ray.distributed.worker_cache import get_or_create, get_shared
from rec_ray.retrieval.features.catalogue import Catalogue
from rec_ray.retrieval.features.timelines import Timelines
from rec_ray.retrieval.metrics.holdout import Holdout, collect_held_out, users_with_targets
from rec_ray.retrieval.metrics.list_ranker import ListRanker
from rec_ray.retrieval.metrics.metrics import bootstrap_weights
from rec_ray.retrieval.metrics.rankers import CountingRanker, Ranker, Ranking, TowerRanker
from rec_ray.retrieval.metrics.segment_metrics import SegmentMetrics
from rec_ray.retrieval.metrics.segments import segment_users
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.retrieval.ragged import take_rows
from rec_ray.storage.object_store import Storage

RECOMMENDED = "model_as_recommended"
CELLS = 20_000_000
"""Largest number of baseline scores, users times items, in the memory of a process."""
EXAMPLE_USERS, EXAMPLE_EVENTS, PLOTTED_SCORES = 5, 12, 256
"""Example users per segment; history events per example; users per batch whose scores are sampled."""

RANKED = pa.schema([("sums", pa.binary()), ("said", pa.string())])
"""sums: an Arrow stream of `SegmentMetrics.to_table`. said: JSON of counts, sampled scores and examples."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class RankingPlan:
    """Inputs of a ranking task beside its users.

    bundle: reference to a `TwoTowerBundle`. baselines: reference to counted baselines by name, or None. catalogue:
    folder of the catalogue as of the test start, encoded for this bundle. bounds: of `activity_bounds`. candidates,
    now: settings of the lists and the test start, if the lists of the candidates step are ranked too.
    """

    name: str
    bundle: ray.ObjectRef
    baselines: ray.ObjectRef | None
    catalogue: str
    storage: Storage
    ks: tuple[int, ...]
    bounds: tuple[int, int, int]
    exclude_seen: bool
    candidates: CandidateSettings | None = None
    now: datetime | None = None

    @property
    def key(self) -> str:
        """Cache key of the loaded ranker; it depends on every field."""
        return repr(self)


@dataclass
class ListFigures:
    """Sums over users of list figures such as diversity: figure -> (sum, users with a value)."""

    sums: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, sums: Mapping[str, Sequence[float]]) -> None:
        """Add the sums of other users."""
        for name, (total, users) in sums.items():
            before = self.sums.get(name, (0.0, 0))
            self.sums[name] = (before[0] + float(total), before[1] + int(users))

    def means(self) -> dict[str, float]:
        """Return the mean of each figure."""
        return {name: total / users for name, (total, users) in self.sums.items() if users}


def sums_of(values: Mapping[str, Array]) -> dict[str, tuple[float, int]]:
    """Return the sums and numbers of users of figures by name; values are [q], NaN for users without a value."""
    return {
        name: (float(np.nansum(column)), int(np.count_nonzero(~np.isnan(column)))) for name, column in values.items()
    }


def rank_targets(batch: pa.Table, plan: RankingPlan) -> pa.Table:
    """Return `TargetRanker.rank` of a batch; the ranker is loaded once per process."""
    return get_or_create(f"ranker {plan.key}", lambda: TargetRanker(plan)).rank(batch)


class TargetRanker:
    """Ranking of the held-out positives of timelines by a model and, if given, by baselines."""

    def __init__(self, plan: RankingPlan) -> None:
        torch.set_num_threads(1)
        self.plan = plan
        bundle: TwoTowerBundle = get_shared(plan.bundle)
        table = pq.read_table(plan.catalogue, filesystem=plan.storage.filesystem)
        self.user_shape = bundle.preprocessor.users.shape
        self.catalogue = Catalogue.from_table(table, bundle.preprocessor.items.shape)
        self.methods: dict[str, Ranker] = {plan.name: TowerRanker(bundle, self.catalogue)}
        if plan.baselines is not None:
            counted = get_shared(plan.baselines)
            self.methods |= {name: CountingRanker(baseline, self.catalogue) for name, baseline in counted.items()}
        self.recommended: ListRanker | None = None
        if plan.candidates is not None and plan.now is not None:
            self.recommended = ListRanker.of(table, self.catalogue, bundle, plan.candidates, plan.now)

    def rank(self, batch: pa.Table) -> pa.Table:
        """Return one row of `RANKED` for rows of `TIMELINES`."""
        timelines = Timelines.from_table(batch, self.user_shape)
        users = users_with_targets(timelines)
        sums = SegmentMetrics(self.plan.ks, self.plan.bounds, len(self.catalogue))
        counts = {"targets": 0, "seen_targets": 0, "unknown_targets": 0}
        said: dict[str, Any] = {"examples": [], "scores": {"recommended": [], "taken": [], "random": []}}
        figures: dict[str, ListFigures] = {}
        step = max(1, CELLS // (len(self.catalogue) + 1))
        for start in range(0, len(users), step):
            questions, held_out = collect_held_out(
                timelines, users[start : start + step], self.catalogue, exclude_seen=self.plan.exclude_seen
            )
            for name, count in asdict(held_out).items():
                counts[name] += count
            if not len(questions):
                continue
            numbers = _stable_numbers(timelines.user_ids.take(pa.array(questions.users)))
            draws = bootstrap_weights(numbers)
            for name, method in self.methods.items():
                ranking = method.rank(questions)
                sums.add(name, draws, questions, ranking, self.catalogue)
                self._measure(figures, name, ranking)
                if name == self.plan.name:
                    if self.recommended is not None:
                        list_ranking = self.recommended.rank(questions, batch)
                        sums.add(RECOMMENDED, draws, questions, list_ranking, self.catalogue)
                        self._measure(figures, RECOMMENDED, list_ranking)
                    said["examples"] += self._examples(questions, ranking, numbers)
                    _sample_scores(questions, ranking, said["scores"])
        known = {"known_items": int(self.catalogue.known.sum())}
        lists = {name: list_figures.sums for name, list_figures in figures.items()}
        text = json.dumps({"counts": counts, "known": known, "lists": lists, **said})
        return pa.table([pa.array([_to_bytes(sums.to_table())], pa.binary()), pa.array([text])], schema=RANKED)

    def _measure(self, figures: dict[str, ListFigures], name: str, ranking: Ranking) -> None:
        """Add the figures of lists, if rules besides scores determine the lists."""
        if self.recommended is not None:
            values = self.recommended.figures(ranking.lists)
            figures.setdefault(name, ListFigures()).add(sums_of(values))

    def _examples(self, questions: Holdout, ranking: Ranking, numbers: Array) -> list[dict[str, Any]]:
        """Return the users of each segment with the smallest numbers; independent of the blocks."""
        examples = []
        for segment, mask in segment_users(questions.events, self.plan.bounds).items():
            if segment == "warm_users":
                continue
            places = np.flatnonzero(mask)
            for place in places[np.argsort(numbers[places], kind="stable")[:EXAMPLE_USERS]].tolist():
                history = take_rows(*questions.history, np.array([place]))[0][-EXAMPLE_EVENTS:]
                kept = ranking.lists[place] >= 0
                taken = questions.targets[questions.offsets[place] : questions.offsets[place + 1]]
                examples.append(
                    {
                        "number": int(numbers[place]),
                        "user_id": questions.timelines.user_ids[int(questions.users[place])].as_py(),
                        "segment": segment,
                        "history": self._ids(history),
                        "recommended": self._ids(ranking.lists[place][kept]),
                        "scores": ranking.scores[place][kept].tolist(),
                        "taken": self._ids(taken),
                    }
                )
        return examples

    def _ids(self, items: Array) -> list[str]:
        ids: list[str] = self.catalogue.item_ids.take(pa.array(items - 1)).to_pylist()
        return ids


def read_sums(data: bytes) -> pa.Table:
    """Return the table of sums in a row of `RANKED`."""
    return pa.ipc.open_stream(data).read_all()


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _sample_scores(questions: Holdout, ranking: Ranking, scores: dict[str, list[float]]) -> None:
    """Add the scores of the best item, the first target and a random item of the first users of a batch."""
    users = min(len(questions), PLOTTED_SCORES - len(scores["random"]))
    if users <= 0 or ranking.random_scores is None:
        return
    best = ranking.scores[:users, 0]
    scores["recommended"] += best[np.isfinite(best)].tolist()
    scores["taken"] += ranking.target_scores[questions.offsets[:users]].tolist()
    scores["random"] += ranking.random_scores[:users].tolist()


def _stable_numbers(user_ids: pa.Array) -> Array:
    """Return a number per user that depends on the user id only: [u] int64."""
    return np.array([zlib.crc32(user.encode()) for user in user_ids.to_pylist()], np.int64)
