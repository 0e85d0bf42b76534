"""What a command did, for the person or the program that started it: figures, counts, seconds and addresses.

The world of a run and what its steps handed over come in, a `RunReport` goes out; that of a finished run is made again
from its ledger. It prints nothing, and knows no order of steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import TypeAdapter

from rec_ray.contracts import Candidates, Evaluation, SearchVectors, StoredModel, TrainingData, UpdateReport
from rec_ray.runs.context import World
from rec_ray.runs.ledger import RunLedger
from rec_ray.storage.model_store import candidates_folder


@dataclass(frozen=True)
class RunReport:
    """What a command did: figures, counts, seconds of each step, and where things lie.

    finished_before: the run had ended well already, and this is what it reported then.
    """

    command: str
    run_id: str
    version: str | None = None
    evaluation: Evaluation | None = None
    counts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    gate: str = "off"
    finished_before: bool = False


def count_data(data: TrainingData) -> dict[str, int]:
    """Return what a run read and used."""
    return {
        "interactions read": data.rows.read,
        "events used": data.events,
        "positives to learn from": data.positives,
        "users": data.users,
        "items": data.items,
    }


def count_candidates(candidates: Candidates) -> dict[str, int]:
    """Return what was embedded and recommended."""
    counts = {"users with recommendations": candidates.users, "items embedded": candidates.items}
    said = {
        "popularity_lists": "users of whom nothing is known: popularity",
        "users_without_items": "users for whom the filters leave nothing",
    }
    return counts | {what: candidates.facts[name] for name, what in said.items() if candidates.facts.get(name)}


def count_search(vectors: SearchVectors) -> dict[str, int]:
    """Return what was encoded for views that are searched; nothing where there are none."""
    if not vectors.rows:
        return {}
    counts = {"texts and images encoded": vectors.encoded, "texts and images kept": vectors.kept}
    return counts | ({"images that cannot be read": vectors.unreadable} if vectors.unreadable else {})


def count_update(update: UpdateReport) -> dict[str, int]:
    """Return what reached Feast."""
    counts = {f"rows pushed to {source}": rows for source, rows in update.rows.items()}
    return counts | {f"departed, emptied in {source}": rows for source, rows in update.departed.items() if rows}


def report_again(run: RunLedger) -> RunReport:
    """Return what a finished run reported."""
    said = {**(run.report or {}), "finished_before": True}
    if said["evaluation"] is not None:
        said["evaluation"] = TypeAdapter(Evaluation).validate_python(said["evaluation"])
    return RunReport(**said)


def report_run(
    world: World,
    command: str,
    stored: StoredModel,
    evaluation: Evaluation | None,
    counts: dict[str, int],
    gate: str = "off",
    page: str = "",
) -> RunReport:
    """Return the report of a command. page: address of the report of the version, if one was written."""
    where = {
        **({"report": page} if page else {}),
        "model": stored.uri,
        "candidates": world.storage.uri(candidates_folder(stored.version)),
        "versions": world.database.url,
        "feature repository": str(world.store.repo_path),
    }
    seconds = {name: round(took, 1) for name, took in world.seconds.items()}
    return RunReport(command, world.run_id, stored.version, evaluation, counts, seconds, where, gate)
