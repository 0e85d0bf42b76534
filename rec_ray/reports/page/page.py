"""HTML page of a report: one file that needs no network, no script and no other file.

`render_report` returns the text of the page for `ReportFacts`; the template escapes every text of the data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rec_ray.contracts import LIVE, MODEL, POPULARITY
from rec_ray.reports.comparison import name_method, verdict
from rec_ray.reports.page import plots
from rec_ray.reports.page.facts import ReportFacts

METRICS = ("recall@10", "ndcg@10", "recall@100", "mrr", "coverage@10", "novelty@10")
HEADINGS = {"recall": "Recall", "ndcg": "NDCG", "mrr": "MRR", "coverage": "Coverage", "novelty": "Novelty"}
SEGMENT_METRIC = "recall@10"
COLOURED = 8
"""Number of categories with their own colour on the map."""
PERIODS = {"train": "training", "validation": "early stopping", "test": "held out for the metrics"}


def render_report(facts: ReportFacts) -> str:
    """Return the page."""
    environment = Environment(
        loader=PackageLoader("rec_ray.reports.page", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"heading": heading, "day": _day, "method": name_method}
    evaluation = facts.evaluation
    metrics: Mapping[str, Mapping[str, float]] = evaluation.get("metrics") or {}
    return environment.get_template("report.html.jinja").render(
        facts=facts,
        evaluation=evaluation,
        verdict=verdict(evaluation) if metrics else [],
        tiles=_tiles(facts, metrics),
        shown=[name for name in METRICS if name in metrics.get(MODEL, {})],
        rows=_metric_rows(evaluation, metrics),
        methods=[{"name": name_method(method), "colour": plots.colour_of(method)} for method in metrics],
        plots={name: Markup(svg) for name, svg in _draw_plots(facts, metrics).items()},
        segment_methods=[{"name": name_method(m), "colour": plots.colour_of(m)} for m in _compared(metrics)],
        legend=_categories(facts)[1] if facts.item_map else [],
        examples=[_example(facts, example) for example in evaluation.get("examples") or []],
        periods=_periods(evaluation),
        settings=yaml.safe_dump(facts.settings, sort_keys=False, allow_unicode=True) if facts.settings else "",
    )


def heading(metric: str) -> str:
    """Return the readable name of a metric."""
    name, _, k = metric.partition("@")
    return HEADINGS.get(name, name) + (f"@{k}" if k else "")


def _day(text: str) -> str:
    return text[:16].replace("T", " ") + (" UTC" if len(text) > 10 else "")


def _interval(evaluation: Mapping[str, Any], method: str, metric: str) -> tuple[float | None, float | None]:
    low, high = ((evaluation.get("intervals") or {}).get(method) or {}).get(metric) or (None, None)
    return low, high


def _tiles(facts: ReportFacts, metrics: Mapping[str, Mapping[str, float]]) -> list[dict[str, str]]:
    model = metrics.get(MODEL)
    if not model:
        return []
    tiles = []
    for metric in ("recall@10", "ndcg@10"):
        low, high = _interval(facts.evaluation, MODEL, metric)
        under = f"95 % interval {low:.4f} to {high:.4f}" if low is not None and high is not None else ""
        tiles.append({"name": heading(metric), "value": f"{model[metric]:.4f}", "under": under})
    for method, words in ((POPULARITY, "popularity"), (LIVE, "the live version")):
        other = (metrics.get(method) or {}).get("recall@10")
        if other:
            times = f"{model['recall@10'] / other:.2f}×"
            tiles.append({"name": f"Recall@10 over {words}", "value": times, "under": f"{words}: {other:.4f}"})
    users = facts.evaluation.get("users") or 0
    if users:
        under = f"{facts.evaluation.get('targets') or 0:,} held-out events"
        tiles.append({"name": "Users evaluated", "value": f"{users:,}", "under": under})
    if "coverage@10" in model:
        tiles.append(
            {"name": "Catalogue coverage", "value": f"{model['coverage@10']:.0%}", "under": "in the first ten"}
        )
    return tiles


def _metric_rows(evaluation: Mapping[str, Any], metrics: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    best = {
        name: max((own[name] for own in metrics.values() if own.get(name) is not None), default=None)
        for name in METRICS
    }
    rows = []
    for method, own in metrics.items():
        cells = []
        for name in METRICS:
            if name not in metrics.get(MODEL, {}):
                continue
            value = own.get(name)
            low, high = _interval(evaluation, method, name)
            digits = 2 if name.startswith("novelty") else 4
            cells.append(
                {
                    "value": "" if value is None else f"{value:.{digits}f}",
                    "interval": "" if low is None or high is None else f"{low:.{digits}f} – {high:.{digits}f}",
                    "best": value is not None and value == best[name],
                }
            )
        difference = ((evaluation.get("differences") or {}).get(method) or {}).get("recall@10")
        beside = {"word": "", "interval": ""}
        if difference and difference[0] is not None:
            low, high = difference
            word = "better" if low > 0 else "worse" if high < 0 else "no clear difference"
            beside = {"word": word, "interval": f"{low:+.4f} to {high:+.4f}"}
        colour = plots.colour_of(method)
        rows.append({"name": name_method(method), "colour": colour, "cells": cells, "beside": beside})
    return rows


def _compared(metrics: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the methods to draw by segment: model, live version, popularity, and the best of the others."""
    first = [method for method in (MODEL, LIVE, POPULARITY) if method in metrics]
    others = [method for method in metrics if method not in first]
    others.sort(key=lambda method: -(metrics[method].get("recall@10") or 0.0))
    return first + others[:1]


def _draw_plots(facts: ReportFacts, metrics: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    evaluation = facts.evaluation
    svgs: dict[str, str] = {}
    for metric in ("recall@10", "ndcg@10"):
        rows = []
        for method, own in metrics.items():
            if own.get(metric) is not None:
                low, high = _interval(evaluation, method, metric)
                row = {"method": method, "name": name_method(method), "value": own[metric], "low": low, "high": high}
                rows.append(row)
        if rows:
            svgs[metric] = plots.plot_metric(rows, heading(metric))
    ks = sorted(int(name.partition("@")[2]) for name in metrics.get(MODEL, {}) if name.startswith("recall@"))
    if len(ks) > 1:
        svgs["curves"] = plots.plot_recall_curves(
            {
                method: (name_method(method), [(k, own[f"recall@{k}"]) for k in ks if f"recall@{k}" in own])
                for method, own in metrics.items()
            }
        )
    groups = _segment_groups(evaluation, _compared(metrics))
    if groups:
        svgs["segments"] = plots.plot_segments(groups, heading(SEGMENT_METRIC))
    if facts.epochs:
        for metric, label, colour in (("loss", "loss", "c1"), ("validation_ndcg", "validation NDCG@10", "c0")):
            svgs[metric] = plots.plot_learning(facts.epochs, facts.best_epoch, metric, label, colour)
    distributions = evaluation.get("distributions") or {}
    scores = distributions.get("scores") or {}
    if any(scores.values()):
        order = (("random", "random item", "c8"), ("taken", "held-out item", "c2"), ("recommended", "best item", "c0"))
        kept = {said: (colour, scores[name]) for name, said, colour in order if scores.get(name)}
        svgs["scores"] = plots.plot_histograms(kept, "score of a user and an item")
    popularity = {
        said: (colour, distributions[name])
        for name, said, colour in (("learned", "training events", "c1"), ("recommended", "recommendations", "c0"))
        if distributions.get(name)
    }
    if popularity:
        svgs["popularity"] = plots.plot_popularity(popularity)
    if facts.item_map:
        svgs["map"] = plots.plot_item_map(_categories(facts)[0])
    if facts.seconds:
        svgs["seconds"] = plots.plot_seconds(facts.seconds)
    return svgs


def _segment_groups(evaluation: Mapping[str, Any], methods: Sequence[str]) -> list[dict[str, Any]]:
    groups = []
    for segment in (evaluation.get("segments") or {}).values():
        bars = []
        for method in methods:
            value = (segment["metrics"].get(method) or {}).get(SEGMENT_METRIC)
            if value is not None:
                low, high = (segment["intervals"].get(method) or {}).get(SEGMENT_METRIC) or (None, None)
                bars.append({"method": method, "name": name_method(method), "value": value, "low": low, "high": high})
        if bars:
            groups.append({"name": f"{segment['described']}\n{segment['users']:,} users asked", "bars": bars})
    return groups


def _categories(facts: ReportFacts) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the points of the map with colours, and the legend: the most frequent categories, then the others."""
    ids = facts.item_map["item_ids"]
    frequent = Counter(facts.categories[item_id] for item_id in ids if facts.categories.get(item_id))
    coloured = {name: f"c{place}" for place, (name, _) in enumerate(frequent.most_common(COLOURED))}
    legend = [{"name": name, "colour": colour, "count": frequent[name]} for name, colour in coloured.items()]
    points, rest = [], 0
    for item_id, x, y in zip(ids, facts.item_map["x"], facts.item_map["y"], strict=True):
        category = facts.categories.get(item_id, "")
        rest += category not in coloured
        said = facts.names.get(item_id) or item_id
        colour = coloured.get(category, plots.OTHER)
        points.append({"x": x, "y": y, "colour": colour, "said": f"{said} ({category})" if category else said})
    if rest:
        legend.append({"name": "others" if coloured else "items", "colour": plots.OTHER, "count": rest})
    return points, legend


def _example(facts: ReportFacts, example: Mapping[str, Any]) -> dict[str, Any]:
    taken = set(example["taken"])

    def item(item_id: str) -> dict[str, Any]:
        name, category = facts.names.get(item_id) or item_id, facts.categories.get(item_id, "")
        return {"name": name, "category": category, "hit": item_id in taken}

    missed = [item_id for item_id in example["taken"] if item_id not in set(example["recommended"])]
    return {
        "user_id": example["user_id"],
        "segment": example["segment"],
        "history": [item(item_id) for item_id in reversed(example["history"])],
        "recommended": [item(item_id) for item_id in example["recommended"]],
        "hits": len(taken) - len(missed),
        "taken": len(taken),
        "missed": [item(item_id) for item_id in missed[:5]],
        "more_missed": max(0, len(missed) - 5),
    }


def _periods(evaluation: Mapping[str, Any]) -> list[dict[str, str]]:
    periods = (evaluation.get("facts") or {}).get("periods") or {}
    return [
        {
            "name": PERIODS[name],
            "events": f"{periods[name][0]:,}",
            "first": _at(periods[name][1]),
            "last": _at(periods[name][2]),
        }
        for name in PERIODS
        if name in periods
    ]


def _at(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"
