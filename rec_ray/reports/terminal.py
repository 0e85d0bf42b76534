"""Terminal output of the commands: tables and sentences, printed through rich.

Input are an `Evaluation`, counts, seconds, addresses, versions or a plan; nothing is computed or read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rec_ray.contracts import LIVE, MODEL, REFITTED, Evaluation
from rec_ray.logs import printable
from rec_ray.reports.comparison import compare_model, find_difference, find_interval, name_method

METRICS, WIDE_METRICS = ("recall@10", "ndcg@10", "mrr"), ("recall@10", "ndcg@10", "recall@100", "mrr", "coverage@10")
WIDE = 120
"""Columns of a terminal from which `WIDE_METRICS` fit."""
HEADINGS = {
    "recall": "Recall",
    "ndcg": "NDCG",
    "mrr": "MRR",
    "coverage": "Coverage",
    "diversity": "diversity",
    "fresh": "new",
}


def print_evaluation(console: Console, evaluation: Evaluation) -> None:
    """Print the metrics, one row per method with the model first, and its comparison with the others."""
    if not evaluation.metrics:
        console.print("No held-out event to evaluate on: there are no metrics.")
        return
    measured = next(iter(evaluation.metrics.values()))
    wide = console.width >= WIDE
    columns = [name for name in (WIDE_METRICS if wide else METRICS) if name in measured]
    with_interval = {"recall@10", "ndcg@10"} if wide else {"recall@10"}
    title = f"Held-out events of {evaluation.users:,} users, all items ranked"
    console.print(title, highlight=False)
    table = Table(box=SIMPLE)
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(_heading(name), justify="right", no_wrap=True)
        if name in with_interval:
            table.add_column("95 %", justify="right", no_wrap=True)
    table.add_column("model is", no_wrap=True)
    best = {name: max(values[name] for values in evaluation.metrics.values()) for name in columns}
    for method, values in evaluation.metrics.items():
        cells = []
        for name in columns:
            text = f"{values[name]:.4f}"
            cells.append(f"[bold]{text}[/]" if values[name] == best[name] else text)
            if name in with_interval:
                interval = find_interval(evaluation, method, name)
                cells.append(f"[dim]{_short(interval[0])} {_short(interval[1])}[/]" if interval else "")
        table.add_row(Text(name_method(method)), *cells, _compare(evaluation, method))
    console.print(table)
    for sentence in compare_model(evaluation):
        console.print(sentence, markup=False, highlight=False)
    for method, figures in evaluation.facts.lists.items():
        text = ", ".join(f"{_heading(name)} {value:.3f}" for name, value in figures.items())
        console.print(f"Lists of {name_method(method)}: {text}.", markup=False, highlight=False)
    facts = evaluation.facts
    if facts.seen_targets:
        console.print(f"{facts.seen_targets:,} held-out events the user had already seen are no targets.")
    if facts.unknown_targets:
        console.print(f"{facts.unknown_targets:,} held-out events of items not known before the test are no targets.")


def _compare(evaluation: Evaluation, method: str) -> str:
    """Compare the model's Recall@10 with that of a method over the same users."""
    difference = find_difference(evaluation, method, "recall@10")
    if difference is None:
        return ""
    return "better" if difference[0] > 0 else "[bold]worse[/]" if difference[1] < 0 else "no different"


def _text(value: object) -> Text:
    """Return a cell as it is: neither markup nor control characters in ids and names act on the terminal."""
    return Text(printable(str(value)))


def _short(share: float) -> str:
    """Format a share without the zero before the decimal point."""
    return f"{share:.4f}".replace("0.", ".", 1)


def _heading(metric: str) -> str:
    name, _, k = metric.partition("@")
    return HEADINGS.get(name, name) + (f"@{k}" if k else "")


def print_rows(console: Console, title: str, rows: Mapping[str, object], *, unit: str = "") -> None:
    """Print names and values in two columns."""
    console.print(_text(title))
    table = Table(show_header=False, box=SIMPLE)
    table.add_column("")
    table.add_column(
        "", overflow="fold", justify="right" if all(isinstance(v, int | float) for v in rows.values()) else "left"
    )
    for name, value in rows.items():
        text = f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        table.add_row(_text(name.replace("_", " ")), _text(text + unit))
    console.print(table)


def print_items(
    console: Console, title: str, item_ids: Sequence[str], scores: Sequence[float], names: Mapping[str, str]
) -> None:
    """Print a ranked list of items with names and scores; markup in ids and names stays plain text."""
    console.print(_text(title))
    table = Table(box=SIMPLE)
    table.add_column("", justify="right")
    table.add_column("Item", no_wrap=True)
    if names:
        table.add_column("Name")
    if scores:
        table.add_column("Score", justify="right")
    for rank, item_id in enumerate(item_ids):
        cells = [str(rank + 1), item_id]
        cells += [names.get(item_id, "")] if names else []
        cells += [f"{scores[rank]:.3f}"] if scores else []
        table.add_row(*map(_text, cells))
    console.print(table)


def print_version(console: Console, version: Mapping[str, Any]) -> None:
    """Print one version: its facts, then the metrics of each method."""
    facts = {name: value for name, value in version.items() if name != "metrics" and value is not None}
    facts["published"] = ", ".join(facts.get("published", [])) or "never"
    print_rows(console, f"Version {version['version']}", facts)
    for method, metrics in (version.get("metrics") or {}).items():
        print_rows(console, f"Metrics of {method}", {name: _figure(value) for name, value in metrics.items()})


def _figure(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


STATES = {"published": "was live", "reserved": "being made"}
"""Words for states of versions that differ from their names: a published one that is not live any more was live."""
OF_THE_MODEL = (MODEL, REFITTED, LIVE)


def print_versions(console: Console, versions: Sequence[Mapping[str, Any]]) -> None:
    """Print one row per version, its metrics beside those of the best baseline."""
    if not versions:
        console.print("No version yet.")
        return
    table = Table(box=SIMPLE)
    for heading in ("Version", "State", "Since"):
        table.add_column(heading, no_wrap=True)
    for heading in ("Recall@10", "NDCG@10"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("best baseline", overflow="fold")
    table.add_column("Run", overflow="fold")
    for version in versions:
        metrics = version.get("metrics") or {}
        model = metrics.get(MODEL) or {}
        figures = [f"{model[name]:.4f}" if model.get(name) is not None else "" for name in ("recall@10", "ndcg@10")]
        since = str(version.get("updated_at") or "")[:16].replace("T", " ")
        state = STATES.get(version["state"], version["state"])
        cells = [version["version"], state, since, *figures, _best_baseline(metrics), version.get("run_id") or ""]
        table.add_row(*map(_text, cells))
    console.print(table)


def _best_baseline(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """Return the name and the Recall@10 and NDCG@10 of the baseline with the highest Recall@10."""
    baselines = {name: each for name, each in metrics.items() if name not in OF_THE_MODEL and "recall@10" in each}
    if not baselines:
        return ""
    best = max(baselines, key=lambda name: baselines[name]["recall@10"])
    return f"{name_method(best)} {baselines[best]['recall@10']:.4f} {baselines[best].get('ndcg@10', float('nan')):.4f}"


def print_plan(console: Console, plan: Any) -> None:
    """Print a `plan.Plan`: rows, steps with their estimates, rows to publish, and notes."""
    rows = {name: "unknown" if count is None else f"{count:,}" for name, count in plan.rows.items()}
    print_rows(console, f"Rows for version {plan.version}", rows)
    console.print(f"Steps, estimated for {plan.cores} cores", highlight=False)
    table = Table(box=SIMPLE)
    table.add_column("")
    table.add_column("")
    table.add_column("Seconds", justify="right")
    table.add_column("GB of memory", justify="right")
    for step in plan.steps:
        cells = [step.name, step.does, f"{step.seconds:,.0f}", f"{step.memory_bytes / 1e9:.1f}"]
        table.add_row(*map(_text, cells))
    table.add_row("total", "", f"{plan.seconds:,.0f}", f"{plan.memory_bytes / 1e9:.1f}")
    console.print(table)
    print_rows(console, "Rows to publish", plan.publishes)
    print_rows(console, "Locations", plan.where | {"disk": f"about {plan.disk_bytes / 1e9:.2f} GB"})
    for note in plan.notes:
        console.print(f"- {note}", markup=False, highlight=False)
