"""Comparison of the model with the other methods, in sentences, and readable names of methods.

Input are metrics, intervals and differences as plain values of an `Evaluation` or of a stored report. Terminal and HTML
report print the sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rec_ray.contracts import LIVE, MODEL, POPULARITY, REFITTED

METRIC = "recall@10"
_NAMES = {
    "model": "model",
    "model_as_recommended": "lists as recommended",
    "model_refitted": "model, refitted",
    "live": "live version",
    "popularity": "popularity",
    "recent_popularity": "recent popularity",
    "item_knn": "item-kNN",
    "item_transitions": "item transitions",
}


def name_method(method: str) -> str:
    """Return the readable name of a method."""
    return _NAMES.get(method, method.replace("_", " "))


def verdict(evaluation: Mapping[str, Any]) -> list[str]:
    """Compare the model with popularity, the best other baseline, and the live version; return one sentence each.

    evaluation: fields of an `Evaluation`. Two methods differ if the 95 % interval of their difference over the same
    users excludes 0; without that interval, if the other method is outside the model's own interval.
    """
    sentences = [_compare_with_popularity(evaluation)]
    metrics = evaluation["metrics"]
    baselines = [name for name in ("recent_popularity", "item_knn", "item_transitions") if name in metrics]
    if baselines:
        best = max(baselines, key=lambda name: metrics[name].get(METRIC) or 0.0)
        if (metrics[best].get(METRIC) or 0.0) > (metrics[POPULARITY].get(METRIC) or 0.0):
            sentences.append(_compare(evaluation, best, name_method(best)))
    if REFITTED in metrics:
        sentences.append(
            "Refitted with the validation events, which the baselines have seen too, the model's "
            f"Recall@10 is {metrics[REFITTED].get(METRIC) or 0.0:.4f}; the published model has also learned from the "
            "test events."
        )
    if LIVE in metrics:
        version = (evaluation.get("facts") or {}).get("live_version")
        sentences.append(_compare(evaluation, LIVE, f"the live version {version}" if version else "the live version"))
    return sentences


def _compare_with_popularity(evaluation: Mapping[str, Any]) -> str:
    model, popularity = (evaluation["metrics"][name].get(METRIC) or 0.0 for name in (MODEL, POPULARITY))
    if model <= popularity:
        return (
            f"The model does not beat popularity (Recall@10 {model:.4f} against {popularity:.4f}): "
            "these data contain little that distinguishes users."
        )
    if not _differs(evaluation, POPULARITY):
        return (
            "The model does not beat popularity by more than chance "
            f"(Recall@10 {model:.4f} against {popularity:.4f}{_interval(evaluation, POPULARITY)})."
        )
    if not popularity:
        return f"The model's Recall@10 is {model:.4f}, and that of popularity is 0."
    return f"The model's Recall@10 is {model / popularity:.1f} times that of popularity."


def _compare(evaluation: Mapping[str, Any], method: str, name: str) -> str:
    model, other = (evaluation["metrics"][one].get(METRIC) or 0.0 for one in (MODEL, method))
    figures = f"(Recall@10 {model:.4f} against {other:.4f}{_interval(evaluation, method)})"
    if not (_difference(evaluation, method) or (evaluation.get("intervals") or {}).get(MODEL)):
        higher = "higher" if model > other else "not higher"
        return (
            f"The model's Recall@10 is {higher} than that of {name} {figures}; without intervals, this may be chance."
        )
    if not _differs(evaluation, method):
        return f"The model does not differ from {name} by more than chance {figures}."
    return f"The model is {'better' if model > other else 'worse'} than {name} {figures}."


def _difference(evaluation: Mapping[str, Any], method: str) -> tuple[float, float] | None:
    low, high = ((evaluation.get("differences") or {}).get(method) or {}).get(METRIC) or (None, None)
    return None if low is None or high is None else (low, high)


def _differs(evaluation: Mapping[str, Any], method: str) -> bool:
    difference = _difference(evaluation, method)
    if difference is not None:
        return difference[0] > 0 or difference[1] < 0
    other = evaluation["metrics"][method].get(METRIC) or 0.0
    model = evaluation["metrics"][MODEL].get(METRIC) or 0.0
    low, high = ((evaluation.get("intervals") or {}).get(MODEL) or {}).get(METRIC) or (model, model)
    return other < low or other > high


def _interval(evaluation: Mapping[str, Any], method: str) -> str:
    difference = _difference(evaluation, method)
    return f", 95 % interval of the difference {difference[0]:+.4f} to {difference[1]:+.4f}" if difference else ""
