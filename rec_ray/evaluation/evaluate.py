"""Evaluation of a model on held-out events: full ranking of the catalogue for every user, beside other methods.

Encoded timelines stream through Ray Data, and each batch returns sums that add up. The model sees users as of the test
start; targets are their positives after it. Items are never sampled.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
import ray.data

from rec_ray.config import CandidateSettings, EvaluationSettings
from rec_ray.contracts import (
    LIVE,
    MODEL,
    POPULARITY,
    REFITTED,
    Distributions,
    Evaluation,
    EvaluationFacts,
    Example,
    LiveVersion,
    Segment,
    TrainingData,
)
from rec_ray.distributed.parquet_source import read_rows
from rec_ray.evaluation.baseline_counts import fit_baselines
from rec_ray.evaluation.gate import GATE_METRIC
from rec_ray.evaluation.rank_task import EXAMPLE_USERS, RECOMMENDED, ListFigures, RankingPlan, rank_targets, read_sums
from rec_ray.logs import LOGGER
from rec_ray.retrieval.learning.attempts import COLLAPSED_COSINE
from rec_ray.retrieval.metrics.rankers import LIST_LENGTH
from rec_ray.retrieval.metrics.segment_metrics import EVERYONE, SegmentMetrics
from rec_ray.retrieval.metrics.segments import describe_segment
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.storage.object_store import Storage

USERS = 4096
"""Timelines of one task. Its output has a constant size, so large batches are cheaper."""
TRAINING_FACTS = ("history", "reason", "effective_rank", "mean_cosine", "nothing_learned")
"""Facts about the training in an evaluation, for the gate and the report."""
DRAWN_ITEMS, DRAWN_SCORES = 400, 1000
"""Maximum number of points of a plotted curve over all items, and of scores of a plotted distribution."""


def evaluate_model(
    data: TrainingData,
    bundle: TwoTowerBundle,
    settings: EvaluationSettings,
    storage: Storage,
    *,
    candidates: CandidateSettings,
    live: LiveVersion | None = None,
    refitted: TwoTowerBundle | None = None,
) -> Evaluation:
    """Rank all items known before the test for every user with a held-out positive.

    candidates: with `exclude_seen`, items that the user interacted with before the test are excluded from the ranking,
        as in the recommendations; a held-out positive among them is counted and is no target. If filters or other
        options change the lists, the lists as recommended are evaluated beside the model, on the same targets, with the
        fields of items and users as of the test cut-off.
    live: version to evaluate on the same users, if any; a version with other users is left out with a warning.
    refitted: the model refitted with the validation events, which the baselines count too: the gain of refitting.
    """
    timelines = read_rows(storage, data.timelines)
    counted = fit_baselines(timelines, bundle.preprocessor.users.shape, data.items)

    def plan(name: str, own: TwoTowerBundle, catalogue: str, baselines: ray.ObjectRef | None) -> RankingPlan:
        model, ks = ray.put(own.without_evaluated()), tuple(settings.ks)
        wanted = candidates if name == MODEL and candidates.changes_lists else None
        now, exclude_seen = data.split_times.test_start, candidates.exclude_seen
        return RankingPlan(name, model, baselines, catalogue, storage, ks, counted.bounds, exclude_seen, wanted, now)

    found = EvaluationAccumulator(SegmentMetrics(settings.ks, counted.bounds, data.items))
    for row in _rank(timelines, plan(MODEL, bundle, data.catalogue, counted.baselines)):
        found.add(row)
    training: dict[str, Any] = bundle.metadata.get("training") or {}
    learned: dict[str, Any] = {name: training.get(name) for name in TRAINING_FACTS}
    facts = EvaluationFacts(
        targets=found.counts["targets"],
        seen_targets=found.counts["seen_targets"],
        unknown_targets=found.counts["unknown_targets"],
        known_items=found.known.get("known_items", 0),
        periods=counted.periods,
        lists={method: own.means() for method, own in found.lists.items()},
        **learned,
    )
    users = found.sums.users(MODEL)
    if not users:
        LOGGER.warning("no user has a held-out positive event: there are no metrics")
        return Evaluation({}, 0, 0, facts=facts)
    if refitted is not None:
        for row in _rank(timelines, plan(REFITTED, refitted, data.catalogue, None)):
            found.sums.add_table(read_sums(row["sums"]))
    if live is not None:
        beside = SegmentMetrics(settings.ks, counted.bounds, data.items)
        others = read_rows(storage, live.data.timelines)
        for row in _rank(others, plan(LIVE, live.bundle, live.data.catalogue, None)):
            beside.add_table(read_sums(row["sums"]))
        if beside.users(LIVE) == users:
            found.sums.add_table(beside.to_table())
            facts = replace(facts, live_version=live.version, live_without=live.without)
        else:
            LOGGER.warning(
                "the live version %s is not compared: it was evaluated on %s users and the model on %s, so events "
                "were added or removed meanwhile",
                live.version,
                f"{beside.users(LIVE):,}",
                f"{users:,}",
            )
    return _summarise(found, facts, _learned(data, storage))


def _rank(timelines: ray.data.Dataset, plan: RankingPlan) -> Iterator[dict[str, Any]]:
    ranked = timelines.map_batches(
        rank_targets, fn_kwargs={"plan": plan}, batch_size=USERS, batch_format="pyarrow", zero_copy_batch=True
    )
    for batch in ranked.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from batch.to_pylist()


@dataclass
class EvaluationAccumulator:
    """Sums of the results of all tasks, of the model and of the baselines."""

    sums: SegmentMetrics
    counts: Counter[str] = field(default_factory=Counter)
    known: dict[str, int] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=dict)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    lists: dict[str, ListFigures] = field(default_factory=dict)

    def add(self, row: dict[str, Any]) -> None:
        """Add the result of one task. row: as `rank_task` returns it."""
        self.sums.add_table(read_sums(row["sums"]))
        said = json.loads(row["said"])
        for name, count in said["counts"].items():
            self.counts[name] += count
        self.known = said["known"]
        for method, figures in said["lists"].items():
            self.lists.setdefault(method, ListFigures()).add(figures)
        for name, values in said["scores"].items():
            self.scores.setdefault(name, []).extend(values)
        for example in said["examples"]:
            own = self.examples.setdefault(example["segment"], [])
            own.append(example)
            own.sort(key=lambda one: (one["number"], one["user_id"]))
            del own[EXAMPLE_USERS:]

    def chosen_examples(self) -> tuple[Example, ...]:
        """Return users of all segments in turn until there are enough."""
        chosen = [
            (place, segment, own[place]) for segment, own in sorted(self.examples.items()) for place in range(len(own))
        ]
        chosen.sort(key=lambda one: one[:2])
        first = sorted(chosen[:EXAMPLE_USERS], key=lambda one: one[1])
        return tuple(
            Example(
                user_id=one["user_id"],
                segment=describe_segment(segment, self.sums.bounds),
                history=tuple(one["history"]),
                recommended=tuple(one["recommended"]),
                scores=tuple(one["scores"]),
                taken=tuple(one["taken"]),
            )
            for _, segment, one in first
        )


def _summarise(found: EvaluationAccumulator, facts: EvaluationFacts, learned: Any) -> Evaluation:
    sums = found.sums
    # After the model comes the live version, then the counting baselines.
    first = [MODEL, RECOMMENDED, REFITTED, LIVE]
    methods = sorted(sums.methods(), key=lambda name: first.index(name) if name in first else len(first))
    everyone = {method: sums.sums[method, EVERYONE] for method in methods}
    metrics = {method: own.means() for method, own in everyone.items()}
    for method in methods:
        shown = np.count_nonzero(sums.recommended[method])
        metrics[method][f"coverage@{LIST_LENGTH}"] = float(shown / max(1, facts.known_items))
    model = everyone[MODEL]
    segments = {}
    for segment in sums.segments():
        own = {method: sums.sums[method, segment] for method in methods if (method, segment) in sums.sums}
        segments[segment] = Segment(
            described=describe_segment(segment, sums.bounds),
            users=sums.users(MODEL, segment),
            metrics={method: each.means() for method, each in own.items()},
            intervals={method: each.intervals() for method, each in own.items()},
        )
    differences = {
        method: {name: model.interval_of_difference(own, name) for name in model.metrics}
        for method, own in everyone.items()
        if method != MODEL
    }
    return Evaluation(
        metrics=metrics,
        users=sums.users(MODEL),
        targets=found.counts["targets"],
        intervals={method: own.intervals() for method, own in everyone.items()},
        facts=confirm_collapse(facts, differences),
        differences=differences,
        segments=segments,
        examples=found.chosen_examples(),
        distributions=Distributions(
            scores={name: _thinned(values) for name, values in found.scores.items()},
            learned=_curve(learned),
            recommended=_curve(sums.recommended[MODEL][1:]),
        ),
    )


def confirm_collapse(
    facts: EvaluationFacts, differences: Mapping[str, Mapping[str, tuple[float, float]]]
) -> EvaluationFacts:
    """Drop the sentence on a collapsed training that held-out events contradict.

    A short training may end with a loss above that of popularity and rank better all the same. The sentence stays if
    the item vectors are nearly identical, because search and similar items need them. differences: as in `Evaluation`.
    """
    interval = differences.get(POPULARITY, {}).get(GATE_METRIC)
    if facts.nothing_learned is None or interval is None or interval[0] <= 0:
        return facts
    if facts.mean_cosine is None or facts.mean_cosine >= COLLAPSED_COSINE:
        return facts
    LOGGER.info("the model ranks held-out events better than popularity, although its training was short")
    return replace(facts, nothing_learned=None)


def _learned(data: TrainingData, storage: Storage) -> Any:
    """Return the training positives of each item."""
    table = pq.read_table(data.catalogue, columns=["count"], filesystem=storage.filesystem)
    return table["count"].to_numpy()


def _thinned(values: list[float]) -> list[float]:
    """Return every n-th value, so that few enough remain to plot."""
    return [round(value, 4) for value in values[:: -(-len(values) // DRAWN_SCORES) or 1]]


def _curve(counts: Any) -> list[list[int]]:
    """Return points of the curve of counts, the largest first: place (1 on) and count, closer at the front."""
    ordered = np.sort(counts)[::-1]
    places = (
        np.unique(np.geomspace(1, len(ordered), DRAWN_ITEMS).astype(np.int64)) if len(ordered) else np.zeros(0, int)
    )
    return [[int(place), int(ordered[place - 1])] for place in places]
