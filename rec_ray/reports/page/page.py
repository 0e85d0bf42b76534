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

from rec_ray.contracts import LIVE, MODEL, POPULARITY, Evaluation, Example
from rec_ray.reports.comparison import compare_model, find_difference, find_interval, find_value, name_method
from rec_ray.reports.page import plots
from rec_ray.reports.page.facts import ItemMap, ReportFacts

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
    evaluation = facts.evaluation or Evaluation({}, 0, 0)
    metrics = evaluation.metrics
    return environment.get_template("report.html.jinja").render(
        facts=facts,
        evaluation=evaluation,
        comparison=compare_model(evaluation) if metrics else [],
        tiles=_tiles(evaluation) if metrics else [],
        columns=[name for name in METRICS if name in metrics.get(MODEL, {})],
        rows=_metric_rows(evaluation),
        methods=[{"name": name_method(method), "colour": plots.colour_of(method)} for method in metrics],
        plots={name: Markup(svg) for name, svg in _draw_plots(facts, evaluation).items()},
        segment_methods=[{"name": name_method(m), "colour": plots.colour_of(m)} for m in _compared(metrics)],
        legend=_place_items(facts.item_map, facts)[1] if facts.item_map else [],
        examples=[_example(facts, example) for example in evaluation.examples],
        periods=_periods(evaluation),
        learned=evaluation.facts,
        settings=yaml.safe_dump(facts.settings, sort_keys=False, allow_unicode=True) if facts.settings else "",
    )


def heading(metric: str) -> str:
    """Return the readable name of a metric."""
    name, _, k = metric.partition("@")
    return HEADINGS.get(name, name) + (f"@{k}" if k else "")


def _day(text: str) -> str:
    return text[:16].replace("T", " ") + (" UTC" if len(text) > 10 else "")


def _tiles(evaluation: Evaluation) -> list[dict[str, str]]:
    tiles = []
    for metric in ("recall@10", "ndcg@10"):
        value = find_value(evaluation, MODEL, metric)
        if value is None:
            continue
        interval = find_interval(evaluation, MODEL, metric)
        under = f"95 % interval {interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
        tiles.append({"name": heading(metric), "value": f"{value:.4f}", "under": under})
    for method, words in ((POPULARITY, "popularity"), (LIVE, "the live version")):
        model, other = (find_value(evaluation, name, "recall@10") for name in (MODEL, method))
        if other and model is not None:
            times = f"{model / other:.2f}×"
            tiles.append({"name": f"Recall@10 over {words}", "value": times, "under": f"{words}: {other:.4f}"})
    if evaluation.users:
        under = f"{evaluation.targets:,} held-out events"
        tiles.append({"name": "Users evaluated", "value": f"{evaluation.users:,}", "under": under})
    coverage = find_value(evaluation, MODEL, "coverage@10")
    if coverage is not None:
        tiles.append({"name": "Catalogue coverage", "value": f"{coverage:.0%}", "under": "in the first ten"})
    return tiles


def _metric_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    metrics = evaluation.metrics
    best = {
        name: max(
            (own for method in metrics if (own := find_value(evaluation, method, name)) is not None), default=None
        )
        for name in METRICS
    }
    rows = []
    for method in metrics:
        cells = []
        for name in METRICS:
            if name not in metrics.get(MODEL, {}):
                continue
            value = find_value(evaluation, method, name)
            interval = find_interval(evaluation, method, name)
            digits = 2 if name.startswith("novelty") else 4
            cells.append(
                {
                    "value": "" if value is None else f"{value:.{digits}f}",
                    "interval": f"{interval[0]:.{digits}f} – {interval[1]:.{digits}f}" if interval else "",
                    "best": value is not None and value == best[name],
                }
            )
        difference = find_difference(evaluation, method, "recall@10")
        beside = {"word": "", "interval": ""}
        if difference:
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


def _draw_plots(facts: ReportFacts, evaluation: Evaluation) -> dict[str, str]:
    metrics = evaluation.metrics
    svgs: dict[str, str] = {}
    for metric in ("recall@10", "ndcg@10"):
        rows = []
        for method in metrics:
            value = find_value(evaluation, method, metric)
            if value is not None:
                low, high = find_interval(evaluation, method, metric) or (None, None)
                row = {"method": method, "name": name_method(method), "value": value, "low": low, "high": high}
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
    scores = evaluation.distributions.scores
    if any(scores.values()):
        order = (("random", "random item", "c8"), ("taken", "held-out item", "c2"), ("recommended", "best item", "c0"))
        kept = {text: (colour, scores[name]) for name, text, colour in order if scores.get(name)}
        svgs["scores"] = plots.plot_histograms(kept, "score of a user and an item")
    popularity = {
        text: (colour, points)
        for points, text, colour in (
            (evaluation.distributions.learned, "training events", "c1"),
            (evaluation.distributions.recommended, "recommendations", "c0"),
        )
        if points
    }
    if popularity:
        svgs["popularity"] = plots.plot_popularity(popularity)
    if facts.item_map:
        svgs["map"] = plots.plot_item_map(_place_items(facts.item_map, facts)[0])
    if facts.seconds:
        svgs["seconds"] = plots.plot_seconds(facts.seconds)
    return svgs


def _segment_groups(evaluation: Evaluation, methods: Sequence[str]) -> list[dict[str, Any]]:
    groups = []
    for segment in evaluation.segments.values():
        bars = []
        for method in methods:
            value = find_value(segment, method, SEGMENT_METRIC)
            if value is not None:
                low, high = find_interval(segment, method, SEGMENT_METRIC) or (None, None)
                bars.append({"method": method, "name": name_method(method), "value": value, "low": low, "high": high})
        if bars:
            groups.append({"name": f"{segment.described}\n{segment.users:,} users", "bars": bars})
    return groups


def _place_items(items: ItemMap, facts: ReportFacts) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the points of the map with colours, and the legend: the most frequent categories, then the others."""
    frequent = Counter(facts.categories[item_id] for item_id in items.item_ids if facts.categories.get(item_id))
    coloured = {name: f"c{place}" for place, (name, _) in enumerate(frequent.most_common(COLOURED))}
    legend = [{"name": name, "colour": colour, "count": frequent[name]} for name, colour in coloured.items()]
    points, rest = [], 0
    for item_id, x, y in zip(items.item_ids, items.x, items.y, strict=True):
        category = facts.categories.get(item_id, "")
        rest += category not in coloured
        text = facts.names.get(item_id) or item_id
        colour = coloured.get(category, plots.OTHER)
        points.append({"x": x, "y": y, "colour": colour, "text": f"{text} ({category})" if category else text})
    if rest:
        legend.append({"name": "others" if coloured else "items", "colour": plots.OTHER, "count": rest})
    return points, legend


def _example(facts: ReportFacts, example: Example) -> dict[str, Any]:
    taken = set(example.taken)

    def item(item_id: str) -> dict[str, Any]:
        name, category = facts.names.get(item_id) or item_id, facts.categories.get(item_id, "")
        return {"name": name, "category": category, "hit": item_id in taken}

    missed = [item_id for item_id in example.taken if item_id not in set(example.recommended)]
    return {
        "user_id": example.user_id,
        "segment": example.segment,
        "history": [item(item_id) for item_id in reversed(example.history)],
        "recommended": [item(item_id) for item_id in example.recommended],
        "hits": len(taken) - len(missed),
        "taken": len(taken),
        "missed": [item(item_id) for item_id in missed[:5]],
        "more_missed": max(0, len(missed) - 5),
    }


def _periods(evaluation: Evaluation) -> list[dict[str, str]]:
    periods = evaluation.facts.periods
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
