"""Report of a command: metrics, counts, seconds of each step, and locations of the results.

`report_run` builds a `RunReport` from the context of a run and the objects of its steps; `restore_report` restores that
of a finished run from its ledger. `cli` prints it.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import TypeAdapter

from rec_ray.contracts import (
    Candidates,
    Evaluation,
    SearchVectors,
    StoredModel,
    TrainingData,
    TuningResult,
    UpdateReport,
)
from rec_ray.runs.context import RunContext
from rec_ray.runs.ledger import RunLedger
from rec_ray.storage.model_store import candidates_folder

TUNING = "tuning"
"""Folder of the object store with the results of searches for settings."""


@dataclass(frozen=True)
class RunReport:
    """Result of a command: metrics, counts, seconds of each step, and locations.

    finished_before: True if the run had already finished and this is its original report. advice: sentences on a model
    that does not beat counting.
    """

    command: str
    run_id: str
    version: str | None = None
    evaluation: Evaluation | None = None
    counts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    gate: str = "off"
    advice: list[str] = field(default_factory=list)
    finished_before: bool = False


def count_data(data: TrainingData) -> dict[str, int]:
    """Return the sizes of the training data by readable name."""
    return {
        "interactions read": data.rows.read,
        "events used": data.events,
        "positives to learn from": data.positives,
        "users": data.users,
        "items": data.items,
    }


def count_candidates(candidates: Candidates) -> dict[str, int]:
    """Return the sizes of the candidates by readable name."""
    counts = {"users with recommendations": candidates.users, "items embedded": candidates.items}
    labels = {
        "popularity_lists": "users without events and features: popularity",
        "users_without_items": "users without any item after filters",
    }
    return counts | {label: candidates.facts[name] for name, label in labels.items() if candidates.facts.get(name)}


def count_search(vectors: SearchVectors) -> dict[str, int]:
    """Return the encoded texts and images by readable name; empty without search views."""
    if not vectors.rows:
        return {}
    counts = {"texts and images encoded": vectors.encoded, "texts and images kept": vectors.kept}
    return counts | ({"images that cannot be read": vectors.unreadable} if vectors.unreadable else {})


def count_update(update: UpdateReport) -> dict[str, int]:
    """Return the rows pushed to Feast by readable name."""
    counts = {f"rows pushed to {source}": rows for source, rows in update.rows.items()}
    counts |= {f"departed, emptied in {source}": rows for source, rows in update.departed.items() if rows}
    for view, (ids, there) in update.online.items():
        counts |= {f"ids looked up online in {view}": ids, f"ids with a row in {view}": there}
    counts |= {"withdrawn items, left out": update.withdrawn} if update.withdrawn else {}
    return counts | ({"old versions removed": update.pruned} if update.pruned else {})


def restore_report(run: RunLedger) -> RunReport:
    """Return the report of a finished run from its ledger."""
    values = {**(run.report or {}), "finished_before": True}
    if values["evaluation"] is not None:
        values["evaluation"] = TypeAdapter(Evaluation).validate_python(values["evaluation"])
    return RunReport(**values)


def note_unpublished(report: RunReport) -> RunReport:
    """Return the report of a run without a view to publish to; its last line has the command for publishing."""
    todo = f"no view takes the lists yet; rec-ray feast-views --apply adds some, then: rec-ray publish {report.version}"
    return dataclasses.replace(report, where={**report.where, "not published": todo})


def report_run(
    context: RunContext,
    command: str,
    stored: StoredModel,
    evaluation: Evaluation | None,
    counts: dict[str, int],
    gate: str = "off",
    page: str = "",
    advice: Sequence[str] = (),
) -> RunReport:
    """Build the report of a command. page: address of the HTML report, if one was written. advice: as `RunReport`."""
    where = {
        **({"report": page} if page else {}),
        "model": stored.uri,
        "candidates": context.storage.uri(candidates_folder(stored.version)),
        "versions": context.database.url,
        "feature repository": str(context.store.repo_path),
    }
    seconds = {name: round(took, 1) for name, took in context.seconds.items()}
    return RunReport(
        command, context.run_id, stored.version, evaluation, counts, seconds, where, gate, advice=list(advice)
    )


def report_tuning(context: RunContext, found: TuningResult, counts: dict[str, int]) -> RunReport:
    """Store the trials and the settings of the best one, and build the report, which compares it with the project's."""
    best, own = found.trials[0], found.own
    folder = f"{TUNING}/{context.run_id}"
    trials = [dataclasses.asdict(trial) for trial in found.trials]
    context.storage.write_bytes(f"{folder}/trials.json", json.dumps(trials, indent=2).encode())
    where = {"trials": context.storage.uri(f"{folder}/trials.json")}
    if own is None:
        advice = "the time ended before the project's own settings had an epoch; raise tune.minutes"
    elif not best.settings:
        advice = f"no trial is better than the project's settings: validation NDCG@10 {own.validation_ndcg:.4f}"
    else:
        context.storage.write_bytes(f"{folder}/best.yaml", _nested_yaml(best.settings).encode())
        where["best settings"] = context.storage.uri(f"{folder}/best.yaml")
        gain = best.validation_ndcg / max(own.validation_ndcg, 1e-12) - 1
        overrides = " ".join(
            f"--set {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in best.settings.items()
        )
        advice = (
            f"validation NDCG@10 {best.validation_ndcg:.4f} instead of {own.validation_ndcg:.4f} ({gain:+.1%}); the "
            f"best of many trials is partly chance: compare on the test events with `rec-ray train {overrides}`"
        )
    counts |= {"trials": len(trials), "trials stopped early": sum(trial.stopped for trial in found.trials)}
    seconds = {name: round(took, 1) for name, took in context.seconds.items()}
    return RunReport("tune", context.run_id, None, None, counts, seconds, where, advice=[advice])


def _nested_yaml(settings: dict[str, Any]) -> str:
    """Return settings by full name as the sections of a settings file."""
    nested: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        nested.setdefault(section, {})[key] = value
    text: str = yaml.safe_dump(nested, sort_keys=False)
    return text
