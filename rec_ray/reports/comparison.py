"""Comparison of the model with the other methods, in sentences, and readable names of methods.

Input is an `Evaluation`; a figure that is missing or not finite counts as not measured. Terminal and HTML report print
the sentences.
"""

from __future__ import annotations

import math

from rec_ray.contracts import LIVE, MODEL, POPULARITY, REFITTED, Evaluation, Segment
from rec_ray.errors import list_names

Interval = tuple[float, float]

METRIC = "recall@10"
_NAMES = {
    "model": "model",
    "model_as_recommended": "lists as recommended",
    "model_refitted": "model, refitted",
    "live": "live version",
    "popularity": "popularity",
    "recent_popularity": "recent popularity",
    "item_knn": "item-kNN",
    "random_walk": "random walk",
    "item_transitions": "item transitions",
}


def name_method(method: str) -> str:
    """Return the readable name of a method."""
    return _NAMES.get(method, method.replace("_", " "))


def find_value(evaluation: Evaluation | Segment, method: str, metric: str) -> float | None:
    """Return a metric of a method; None if it was not measured."""
    value = evaluation.metrics.get(method, {}).get(metric)
    return value if value is not None and math.isfinite(value) else None


def find_interval(evaluation: Evaluation | Segment, method: str, metric: str) -> Interval | None:
    """Return the 95 % interval of a metric; None without one."""
    return _finite(evaluation.intervals.get(method, {}).get(metric))


def find_difference(evaluation: Evaluation, method: str, metric: str) -> Interval | None:
    """Return the 95 % interval of the model's metric minus that of a method, over the same users; None without one."""
    return _finite(evaluation.differences.get(method, {}).get(metric))


def _finite(interval: Interval | None) -> Interval | None:
    return interval if interval is not None and all(map(math.isfinite, interval)) else None


def compare_model(evaluation: Evaluation) -> list[str]:
    """Compare the model with popularity, the best other baseline, and the live version; return one sentence each.

    Two methods differ if the 95 % interval of their difference over the same users excludes 0; without that interval,
    if the other method is outside the model's own interval.
    """
    sentences = [_compare_with_popularity(evaluation)]
    if nothing := evaluation.facts.nothing_learned:
        sentences.insert(0, f"{nothing[0].upper()}{nothing[1:]}.")
    metrics = evaluation.metrics
    baselines = [
        name for name in ("recent_popularity", "item_knn", "random_walk", "item_transitions") if name in metrics
    ]
    if baselines:
        best = max(baselines, key=lambda name: _recall(evaluation, name))
        if _recall(evaluation, best) > _recall(evaluation, POPULARITY):
            sentences.append(_compare(evaluation, best, name_method(best)))
    if REFITTED in metrics:
        sentences.append(
            "Refitted with the validation events, which the baselines have seen too, the model's "
            f"Recall@10 is {_recall(evaluation, REFITTED):.4f}; the published model has also learned from the "
            "test events."
        )
    if LIVE in metrics:
        version = evaluation.facts.live_version
        sentences.append(_compare(evaluation, LIVE, f"the live version {version}" if version else "the live version"))
        if without := evaluation.facts.live_without:
            sentences.append(
                f"The live version was evaluated without {list_names(without)}, which the settings no longer declare."
            )
    return sentences


def _recall(evaluation: Evaluation, method: str) -> float:
    return find_value(evaluation, method, METRIC) or 0.0


def _compare_with_popularity(evaluation: Evaluation) -> str:
    model, popularity = _recall(evaluation, MODEL), _recall(evaluation, POPULARITY)
    if model <= popularity:
        return (
            f"The model does not beat popularity (Recall@10 {model:.4f} against {popularity:.4f}): "
            "these data contain little that distinguishes users."
        )
    if not _differs(evaluation, POPULARITY):
        return (
            "The model does not beat popularity by more than chance "
            f"(Recall@10 {model:.4f} against {popularity:.4f}{_in_words(evaluation, POPULARITY)})."
        )
    if not popularity:
        return f"The model's Recall@10 is {model:.4f}, and that of popularity is 0."
    return f"The model's Recall@10 is {model / popularity:.1f} times that of popularity."


def _compare(evaluation: Evaluation, method: str, name: str) -> str:
    model, other = _recall(evaluation, MODEL), _recall(evaluation, method)
    figures = f"(Recall@10 {model:.4f} against {other:.4f}{_in_words(evaluation, method)})"
    if not (find_difference(evaluation, method, METRIC) or find_interval(evaluation, MODEL, METRIC)):
        higher = "higher" if model > other else "not higher"
        return (
            f"The model's Recall@10 is {higher} than that of {name} {figures}; without intervals, this may be chance."
        )
    if not _differs(evaluation, method):
        return f"The model does not differ from {name} by more than chance {figures}."
    return f"The model is {'better' if model > other else 'worse'} than {name} {figures}."


def _differs(evaluation: Evaluation, method: str) -> bool:
    difference = find_difference(evaluation, method, METRIC)
    if difference is not None:
        return difference[0] > 0 or difference[1] < 0
    model, other = _recall(evaluation, MODEL), _recall(evaluation, method)
    low, high = find_interval(evaluation, MODEL, METRIC) or (model, model)
    return other < low or other > high


def _in_words(evaluation: Evaluation, method: str) -> str:
    difference = find_difference(evaluation, method, METRIC)
    return f", 95 % interval of the difference {difference[0]:+.4f} to {difference[1]:+.4f}" if difference else ""
