"""The order of the steps, and nothing else: read this first.

Settings come in; `open_world` opens the object store, the database, Feast and Ray once and hands them to the steps; a
`RunReport` with the figures, the seconds and the addresses goes out. It knows which step follows which and when a
version becomes live, and holds no logic of any step.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rec_ray.candidates import generate_candidates, read_manifest
from rec_ray.config import Settings, redacted
from rec_ray.contracts import Evaluation, FeatureTables, StoredModel, TrainingData
from rec_ray.errors import DataError
from rec_ray.evaluate import check_gate, evaluate_model
from rec_ray.load_features import load_features
from rec_ray.logs import step
from rec_ray.model_store import find_model, load_model, model_folder, save_model
from rec_ray.model_version import VersionRow
from rec_ray.retrieval.bundle import TwoTowerBundle
from rec_ray.storage import Storage
from rec_ray.train import train_two_tower
from rec_ray.training_data import encode_tables, prepare_training_data
from rec_ray.update_features import update_feature_store
from rec_ray.world import World, open_world


@dataclass(frozen=True)
class RunReport:
    """What a command did: figures, counts, seconds of each step, and where things lie."""

    command: str
    run_id: str
    version: str | None = None
    evaluation: Evaluation | None = None
    counts: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    gate: str = "off"


def run_pipeline(settings: Settings, *, run_id: str | None = None) -> RunReport:
    """Do the whole line: the version row, which makes the model live, is the last thing written.

    Raises:
        GateError: the model is stored and was not published.
        RecRayError: see `errors` for the others.
    """
    with open_world(settings, run_id) as world:
        tables, data, bundle, evaluation, stored = _learn(world)
        verdict = check_gate(evaluation, settings.evaluation)
        counts = _recommend(world, data, bundle, stored.version)
        rows = _publish(world, stored.version)
        return _report(world, "run", stored, evaluation, _counts(tables, data) | counts | rows, verdict)


def run_training(settings: Settings, *, run_id: str | None = None) -> RunReport:
    """Train, evaluate and store a model under a new version; nothing is published."""
    with open_world(settings, run_id) as world:
        tables, data, _, evaluation, stored = _learn(world)
        return _report(world, "train", stored, evaluation, _counts(tables, data))


def run_evaluation(settings: Settings, version: str) -> RunReport:
    """Evaluate a stored version on what Feast holds now."""
    with open_world(settings) as world:
        bundle = load_model(version, world.storage)
        tables, data = _encode(world, bundle)
        evaluation = _evaluate(world, data, bundle)
        return _report(world, "evaluate", find_model(version, world.storage), evaluation, _counts(tables, data))


def run_candidates(settings: Settings, version: str | None = None) -> RunReport:
    """Compute and store the candidates of a version (default: the newest stored) from what Feast holds now."""
    with open_world(settings) as world:
        version = version or newest_version(world.storage)
        bundle = load_model(version, world.storage)
        tables, data = _encode(world, bundle)
        counts = _recommend(world, data, bundle, version)
        return _report(world, "candidates", find_model(version, world.storage), None, _counts(tables, data) | counts)


def run_publishing(settings: Settings, version: str | None = None) -> RunReport:
    """Push the stored candidates of a version (default: the newest stored) to Feast and make it live."""
    with open_world(settings) as world:
        version = version or newest_version(world.storage)
        rows = _publish(world, version)
        return _report(world, "publish", find_model(version, world.storage), None, rows)


def newest_version(storage: Storage) -> str:
    """Return the stored version with the highest number.

    Raises:
        DataError: none is stored.
    """
    versions = [name for name in storage.folders("two-tower") if name.isdecimal()]
    if not versions:
        raise DataError(f"no model is stored at {storage.uri('two-tower')}; run `rec-ray train` or `rec-ray run` first")
    return max(versions, key=int)


def _learn(world: World) -> tuple[FeatureTables, TrainingData, TwoTowerBundle, Evaluation, StoredModel]:
    settings = world.settings
    version = world.database.reserve(world.run_id)
    tables = _load(world)
    with step("training_data", world.seconds) as log:
        data = prepare_training_data(
            tables, settings.features, settings.evaluation.split, world.storage, f"{world.prefix}/data"
        )
        log.add(users=data.users, items=data.items, events=data.events, positives=data.positives)
    with step("train", world.seconds, version=version) as log:
        trained = train_two_tower(
            data,
            settings.model,
            settings.train,
            settings.ray,
            world.storage,
            run_id=world.run_id,
            validation_users=settings.evaluation.validation_users,
            exclude_seen=settings.candidates.exclude_seen,
            metadata=_metadata(settings, tables, world.run_id),
        )
        log.add(epochs=len(trained.epochs), best_epoch=trained.best_epoch)
    evaluation = _evaluate(world, data, trained.bundle)
    with step("model_store", world.seconds, version=version) as log:
        metadata = {**trained.bundle.metadata, "metrics": evaluation.metrics, "evaluation": evaluation.facts}
        bundle = dataclasses.replace(trained.bundle, metadata=metadata)
        stored = save_model(bundle, version, world.storage)
        log.add(uri=stored.uri)
    return tables, data, bundle, evaluation, stored


def _load(world: World) -> FeatureTables:
    settings = world.settings
    with step("load_features", world.seconds) as log:
        tables = load_features(
            world.store, settings.feast, settings.features, settings.evaluation, as_of=datetime.now(UTC)
        )
        log.add(rows=tables.rows.kept)
    return tables


def _encode(world: World, bundle: TwoTowerBundle) -> tuple[FeatureTables, TrainingData]:
    settings = world.settings
    tables = _load(world)
    with step("training_data", world.seconds) as log:
        data = encode_tables(
            tables,
            bundle.preprocessor,
            settings.features,
            settings.evaluation.split,
            world.storage,
            f"{world.prefix}/data",
        )
        log.add(users=data.users, items=data.items, events=data.events)
    return tables, data


def _evaluate(world: World, data: TrainingData, bundle: TwoTowerBundle) -> Evaluation:
    settings = world.settings
    with step("evaluate", world.seconds) as log:
        evaluation = evaluate_model(
            data, bundle, settings.evaluation, world.storage, exclude_seen=settings.candidates.exclude_seen
        )
        log.add(users=evaluation.users)
    return evaluation


def _recommend(world: World, data: TrainingData, bundle: TwoTowerBundle, version: str) -> dict[str, int]:
    settings = world.settings
    with step("candidates", world.seconds, version=version) as log:
        candidates = generate_candidates(
            data,
            bundle,
            settings.candidates,
            world.storage,
            version=version,
            prefix=candidates_folder(version),
        )
        log.add(users=candidates.users, items=candidates.items, k=candidates.k, **candidates.facts)
    return {"users with recommendations": candidates.users, "items embedded": candidates.items}


def _publish(world: World, version: str) -> dict[str, int]:
    settings, storage = world.settings, world.storage
    stored = find_model(version, storage)
    bundle = load_model(version, storage)
    manifest = read_manifest(storage, candidates_folder(version))
    owner = f"run {world.run_id} on {platform.node()}, process {os.getpid()}"
    with (
        step("update_features", world.seconds, version=version) as log,
        world.database.publishing_lock(owner, settings.publish.lock_seconds) as lock,
    ):
        report = update_feature_store(
            world.store,
            storage,
            candidates_folder(version),
            manifest,
            settings.publish,
            published_at=datetime.now(UTC),
        )
        log.add(**report.rows)
        metadata = bundle.metadata
        row = VersionRow(
            version=version,
            run_id=str(metadata.get("run_id", world.run_id)),
            artifact_uri=stored.uri,
            sha256=stored.sha256,
            metrics=metadata.get("metrics"),
            settings_hash=str(metadata.get("settings_hash", "")) or None,
            data_from=_instant(metadata.get("data_from")),
            data_to=_instant(metadata.get("data_to")),
        )
        world.database.publish(row, lock)
    return {f"rows pushed to {source}": rows for source, rows in report.rows.items()}


def candidates_folder(version: str) -> str:
    """Return the key of the candidates of a version."""
    return f"{model_folder(version)}/candidates"


def _instant(text: object) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) else None


def _metadata(settings: Settings, tables: FeatureTables, run_id: str) -> dict[str, Any]:
    """Return what a bundle tells about its making."""
    plain = redacted(settings)
    packages = ("rec_ray", "ray", "torch", "feast", "pyarrow", "numpy")
    return {
        "run_id": run_id,
        "created_at": datetime.now(UTC).isoformat(),
        "data_to": tables.split_times.as_of.isoformat(),
        "test_start": tables.split_times.test_start.isoformat(),
        "settings": plain,
        "settings_hash": hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "rows": dataclasses.asdict(tables.rows),
    }


def _counts(tables: FeatureTables, data: TrainingData) -> dict[str, int]:
    return {
        "interactions read": tables.rows.read,
        "events used": data.events,
        "positives to learn from": data.positives,
        "users": data.users,
        "items": data.items,
    }


def _report(
    world: World,
    command: str,
    stored: StoredModel,
    evaluation: Evaluation | None,
    counts: dict[str, int],
    gate: str = "off",
) -> RunReport:
    where = {
        "model": stored.uri,
        "candidates": world.storage.uri(candidates_folder(stored.version)),
        "versions": world.database.url,
        "feature repository": str(world.store.repo_path),
    }
    seconds = {name: round(took, 1) for name, took in world.seconds.items()}
    return RunReport(command, world.run_id, stored.version, evaluation, counts, seconds, where, gate)
