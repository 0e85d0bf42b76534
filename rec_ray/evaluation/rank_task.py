"""Tasks that put the questions of an evaluation to every method, a block of users at a time.

Encoded timelines come in as Arrow batches; one row a batch goes out, with sums that add up and a few users to show. The
models and the counted baselines are loaded once a process; it knows neither settings nor what the figures decide.
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
from rec_ray.distributed.worker_cache import once_a_process, shared_value
from rec_ray.retrieval.features.catalogue import Catalogue
from rec_ray.retrieval.features.timelines import Timelines
from rec_ray.retrieval.metrics.holdout import Questions, ask, users_with_targets
from rec_ray.retrieval.metrics.list_ranker import AsRecommended
from rec_ray.retrieval.metrics.metrics import bootstrap_weights
from rec_ray.retrieval.metrics.rankers import CountingMethod, Method, Ranking, TowerMethod
from rec_ray.retrieval.metrics.segment_metrics import SegmentSums
from rec_ray.retrieval.metrics.segments import segment_users
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.retrieval.ragged import take_rows
from rec_ray.storage.object_store import Storage

RECOMMENDED = "model_as_recommended"
CELLS = 20_000_000
"""Scores of baselines, users times items, that live at one time in a process."""
SHOWN_USERS, SHOWN_EVENTS, SHOWN_SCORES = 5, 12, 256
"""Users of a segment and events of a user that can be examples; users of a batch whose scores are drawn."""

RANKED = pa.schema([("sums", pa.binary()), ("said", pa.string())])
"""sums: an Arrow stream of `SegmentSums.to_table`. said: JSON of counts, and scores and examples of the model."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class RankingPlan:
    """What a ranking task needs beside its users.

    bundle: reference to it. baselines: reference to counted baselines by name, or None.
    catalogue: folder of the catalogue as of the test, encoded for this bundle. bounds: of activity. candidates, now:
    how lists are made and the test cut-off, where the lists as recommended are to be judged too.
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


@dataclass
class ListFigures:
    """Sums over users of figures of their first items: figure -> (sum, users that have one)."""

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
    """Return sums and numbers of users of figures by name, [q] each, NaN where a user has none."""
    return {name: (float(np.nansum(own)), int(np.count_nonzero(~np.isnan(own)))) for name, own in values.items()}


def rank_targets(batch: pa.Table, plan: RankingPlan) -> pa.Table:
    """Return `TargetRanker.rank` of a batch; the ranker is loaded once a process."""
    return once_a_process(f"ranker {plan.bundle.hex()}", lambda: TargetRanker(plan)).rank(batch)


class TargetRanker:
    """Ranks the held-out positives of timelines by a model and, if given, by baselines."""

    def __init__(self, plan: RankingPlan) -> None:
        torch.set_num_threads(1)
        self.plan = plan
        bundle: TwoTowerBundle = shared_value(plan.bundle)
        table = pq.read_table(plan.catalogue, filesystem=plan.storage.filesystem)
        self.user_shape = bundle.preprocessor.users.shape
        self.catalogue = Catalogue.from_table(table, bundle.preprocessor.items.shape)
        self.methods: dict[str, Method] = {plan.name: TowerMethod(bundle, self.catalogue)}
        if plan.baselines is not None:
            counted = shared_value(plan.baselines)
            self.methods |= {name: CountingMethod(one, self.catalogue) for name, one in counted.items()}
        self.recommended: AsRecommended | None = None
        if plan.candidates is not None and plan.now is not None:
            self.recommended = AsRecommended.of(table, self.catalogue, bundle, plan.candidates, plan.now)

    def rank(self, batch: pa.Table) -> pa.Table:
        """Return one row of `RANKED` for rows of `TIMELINES`."""
        timelines = Timelines.from_table(batch, self.user_shape)
        users = users_with_targets(timelines)
        sums = SegmentSums(self.plan.ks, self.plan.bounds, len(self.catalogue))
        counts = {"targets": 0, "seen_targets": 0, "unknown_targets": 0}
        said: dict[str, Any] = {"examples": [], "scores": {"recommended": [], "taken": [], "random": []}}
        figures: dict[str, ListFigures] = {}
        step = max(1, CELLS // (len(self.catalogue) + 1))
        for start in range(0, len(users), step):
            questions, held_out = ask(
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
                        ranking_then = self.recommended.rank(questions, batch)
                        sums.add(RECOMMENDED, draws, questions, ranking_then, self.catalogue)
                        self._measure(figures, RECOMMENDED, ranking_then)
                    said["examples"] += self._examples(questions, ranking, numbers)
                    _sample_scores(questions, ranking, said["scores"])
        known = {"known_items": int(self.catalogue.known.sum())}
        lists = {name: own.sums for name, own in figures.items()}
        text = json.dumps({"counts": counts, "known": known, "lists": lists, **said})
        return pa.table([pa.array([_to_bytes(sums.to_table())], pa.binary()), pa.array([text])], schema=RANKED)

    def _measure(self, figures: dict[str, ListFigures], name: str, ranking: Ranking) -> None:
        """Add how unlike the items of lists are, and how many are new, where lists are made by more than scores."""
        if self.recommended is not None:
            values = self.recommended.figures(ranking.lists)
            figures.setdefault(name, ListFigures()).add(sums_of(values))

    def _examples(self, questions: Questions, ranking: Ranking, numbers: Array) -> list[dict[str, Any]]:
        """Return the users of each segment with the smallest numbers: whatever the blocks, the same in the end."""
        examples = []
        for segment, mask in segment_users(questions.events, self.plan.bounds).items():
            if segment == "warm_users":
                continue
            places = np.flatnonzero(mask)
            for place in places[np.argsort(numbers[places], kind="stable")[:SHOWN_USERS]].tolist():
                history = take_rows(*questions.history, np.array([place]))[0][-SHOWN_EVENTS:]
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


def _sample_scores(questions: Questions, ranking: Ranking, scores: dict[str, list[float]]) -> None:
    """Add the scores of the best item, of the first target and of a random item, of a batch's first users."""
    users = min(len(questions), SHOWN_SCORES - len(scores["random"]))
    if users <= 0 or ranking.random_scores is None:
        return
    best = ranking.scores[:users, 0]
    scores["recommended"] += best[np.isfinite(best)].tolist()
    scores["taken"] += ranking.target_scores[questions.offsets[:users]].tolist()
    scores["random"] += ranking.random_scores[:users].tolist()


def _stable_numbers(user_ids: pa.Array) -> Array:
    """Return a number for each user that does not depend on the block it came in: [u] int64."""
    return np.array([zlib.crc32(user.encode()) for user in user_ids.to_pylist()], np.int64)
