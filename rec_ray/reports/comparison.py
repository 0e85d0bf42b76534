"""Figures into honest words: what methods are called, and one sentence on how the model compares with the others.

Metrics, intervals and differences come in as plain values, as an `Evaluation` or a stored report holds them; sentences
go out. It computes no metric and knows neither terminals nor pages.
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
    """Return what a person calls a method."""
    return _NAMES.get(method, method.replace("_", " "))


def verdict(evaluation: Mapping[str, Any]) -> list[str]:
    """Return sentences on the model: beside popularity, beside the best that only counts, and beside the live version.

    evaluation: the fields of an `Evaluation`. Two methods differ where the 95 % interval of their difference over the
    same users leaves out 0; without one, where the other lies outside the model's own interval.
    """
    sentences = [_beside_popularity(evaluation)]
    metrics = evaluation["metrics"]
    counted = [name for name in ("recent_popularity", "item_knn", "item_transitions") if name in metrics]
    if counted:
        best = max(counted, key=lambda name: metrics[name].get(METRIC) or 0.0)
        if (metrics[best].get(METRIC) or 0.0) > (metrics[POPULARITY].get(METRIC) or 0.0):
            sentences.append(_beside(evaluation, best, name_method(best)))
    if REFITTED in metrics:
        sentences.append(
            "Refitted with the validation events, which the methods that only count have seen too, the model's "
            f"Recall@10 is {metrics[REFITTED].get(METRIC) or 0.0:.4f}; what is published has learned from the test's "
            "as well."
        )
    if LIVE in metrics:
        version = (evaluation.get("facts") or {}).get("live_version")
        sentences.append(_beside(evaluation, LIVE, f"the live version {version}" if version else "the live version"))
    return sentences


def _beside_popularity(evaluation: Mapping[str, Any]) -> str:
    model, popularity = (evaluation["metrics"][name].get(METRIC) or 0.0 for name in (MODEL, POPULARITY))
    if model <= popularity:
        return (
            f"The model does not beat popularity (Recall@10 {model:.4f} against {popularity:.4f}): "
            "these data hold little that tells users apart."
        )
    if not _differs(evaluation, POPULARITY):
        return (
            "The model does not beat popularity by more than chance "
            f"(Recall@10 {model:.4f} against {popularity:.4f}{_interval(evaluation, POPULARITY)})."
        )
    times = f"{model / popularity:.1f} times popularity's" if popularity else "where popularity finds nothing"
    return f"The model's Recall@10 is {times}."


def _beside(evaluation: Mapping[str, Any], method: str, name: str) -> str:
    model, other = (evaluation["metrics"][one].get(METRIC) or 0.0 for one in (MODEL, method))
    figures = f"(Recall@10 {model:.4f} against {other:.4f}{_interval(evaluation, method)})"
    if not (_difference(evaluation, method) or (evaluation.get("intervals") or {}).get(MODEL)):
        higher = "higher" if model > other else "not higher"
        return (
            f"The model's Recall@10 is {higher} than that of {name} {figures}; by more than chance or not is not known."
        )
    if not _differs(evaluation, method):
        return f"The model cannot be told apart from {name} {figures}."
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
