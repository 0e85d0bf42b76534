"""The order of the steps, and nothing else: read this first.

Settings come in; `open_world` opens the object store, the database, Feast and Ray once and hands them to the steps; a
`RunReport` with the figures, the seconds and the addresses goes out. It knows which step follows which and when a
version becomes live, and holds no logic of any step.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from dataclasses import dataclass, field
from typing import Any

from rec_ray.candidates import generate_candidates
from rec_ray.config import Settings, deciding_settings, hash_settings, redacted
from rec_ray.contracts import Candidates, Evaluation, FeatureTables, StoredModel, TrainingData, UpdateReport
from rec_ray.errors import DataError, GateError
from rec_ray.evaluate import check_gate, evaluate_model
from rec_ray.load_features import load_features
from rec_ray.logs import LOGGER, step
from rec_ray.model_store import candidates_folder, find_model, load_model, save_model
from rec_ray.publication import Pruned, prune_versions, publish_version, roll_back
from rec_ray.retrieval.bundle import TwoTowerBundle
from rec_ray.run_ledger import RunLedger, open_run
from rec_ray.run_metrics import EpochMetrics
from rec_ray.schema import EMBEDDING
from rec_ray.storage import Storage
from rec_ray.train import train_two_tower
from rec_ray.training_data import encode_tables, prepare_training_data
from rec_ray.update_features import check_push_targets, find_push_targets
from rec_ray.vector_index import Kind, drop_vector_index, make_vector_index
from rec_ray.world import World, database_of, feature_store_of, open_world, owner_of, storage_of


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


def run_pipeline(settings: Settings, *, run_id: str | None = None) -> RunReport:
    """Do the whole line: the version row, which makes the model live, is the last thing written.

    run_id: a run of this id that did not end well goes on behind its last finished step; one that did is left alone.

    Raises:
        GateError: the model is stored and was not published.
        RecRayError: see `errors` for the others.
    """
    with open_run(storage_of(settings), settings, "run", run_id) as run:
        if run.report is not None:
            return _report_again(run)
        with open_world(settings, run) as world:
            check_push_targets(world.store, settings.publish, settings.model.similarity, settings.model.embedding_size)
            data, bundle, evaluation, stored = _learn(world, run)
            verdict = _judge(world, stored.version, evaluation)
            candidates = run.once("candidates", Candidates, lambda: _recommend(world, data, bundle, stored.version))
            update = run.once("update_features", UpdateReport, lambda: _publish_once(world, stored.version))
            counts = _counts(data) | _candidate_counts(candidates) | _update_counts(update)
            report = _report(world, "run", stored, evaluation, counts, verdict)
        run.finish(report)
        return report


def run_training(settings: Settings, *, run_id: str | None = None) -> RunReport:
    """Train, evaluate and store a model under a new version; nothing is published. run_id: as in `run_pipeline`."""
    with open_run(storage_of(settings), settings, "train", run_id) as run:
        if run.report is not None:
            return _report_again(run)
        with open_world(settings, run) as world:
            data, _, evaluation, stored = _learn(world, run)
            report = _report(world, "train", stored, evaluation, _counts(data))
        run.finish(report)
        return report


def run_evaluation(settings: Settings, version: str) -> RunReport:
    """Evaluate a stored version on what Feast holds now."""
    with open_world(settings) as world:
        bundle = load_model(version, world.storage)
        data = _encode(world, bundle)
        evaluation = _evaluate(world, data, bundle)
        return _report(world, "evaluate", find_model(version, world.storage), evaluation, _counts(data))


def run_candidates(settings: Settings, version: str | None = None) -> RunReport:
    """Compute and store the candidates of a version (default: the newest stored) from what Feast holds now."""
    with open_world(settings) as world:
        version = version or newest_version(world.storage)
        bundle = load_model(version, world.storage)
        data = _encode(world, bundle)
        counts = _counts(data) | _candidate_counts(_recommend(world, data, bundle, version))
        return _report(world, "candidates", find_model(version, world.storage), None, counts)


def run_publishing(settings: Settings, version: str | None = None) -> RunReport:
    """Push the stored candidates of a version (default: the newest stored) to Feast and make it live."""
    with open_world(settings) as world:
        version = version or newest_version(world.storage)
        counts = _update_counts(publish_version(world, version))
        return _report(world, "publish", find_model(version, world.storage), None, counts)


def run_rollback(settings: Settings, version: str) -> RunReport:
    """Push the stored candidates of a version that was live before, and make it live again; no model is loaded."""
    with open_world(settings) as world:
        counts = _update_counts(roll_back(world, version))
        return _report(world, "rollback", find_model(version, world.storage), None, counts)


def run_pruning(settings: Settings, keep: int) -> Pruned:
    """Remove the files of all versions but the newest `keep`, the live one and its parent."""
    database, publish = database_of(settings), settings.publish
    lock = database.publishing_lock(owner_of("prune"), publish.lock_seconds, publish.wait_seconds)
    return prune_versions(storage_of(settings), database, lock, keep)


def run_indexing(settings: Settings, kind: Kind, *, drop: bool = False) -> dict[str, str]:
    """Make the indexes over vectors that Feast leaves out of PostgreSQL, or drop them; say what became of each view."""
    store = feature_store_of(settings)
    done = {}
    for target in find_push_targets(store, settings.publish).values():
        if EMBEDDING not in target.fields:
            continue
        if drop:
            drop_vector_index(store, target)
            done[target.view] = "dropped"
        else:
            made = make_vector_index(store, target, settings.model.similarity, kind)
            done[target.view] = f"{kind} made" if made else "there already"
    return done


def newest_version(storage: Storage) -> str:
    """Return the stored version with the highest number.

    Raises:
        DataError: none is stored.
    """
    versions = [name for name in storage.folders("two-tower") if name.isdecimal()]
    if not versions:
        raise DataError(f"no model is stored at {storage.uri('two-tower')}; run `rec-ray train` or `rec-ray run` first")
    return max(versions, key=int)


def _learn(world: World, run: RunLedger) -> tuple[TrainingData, TwoTowerBundle, Evaluation, StoredModel]:
    version = _reserve(world)
    data = run.once("training_data", TrainingData, lambda: _prepare(world))
    trained = run.once("train", TwoTowerBundle, lambda: _train(world, data, version))
    evaluation = run.once("evaluate", Evaluation, lambda: _evaluate(world, data, trained))
    metadata = {**trained.metadata, "metrics": evaluation.metrics, "evaluation": evaluation.facts}
    bundle = dataclasses.replace(trained, metadata=metadata)
    return data, bundle, evaluation, run.once("model_store", StoredModel, lambda: _store(world, bundle, version))


def _reserve(world: World) -> str:
    with step("reserve", world.seconds) as log:
        version = world.database.reserve(world.run_id)
        log.add(version=version)
    return version


def _prepare(world: World) -> TrainingData:
    settings = world.settings
    tables = _load(world)
    with step("training_data", world.seconds) as log:
        data = prepare_training_data(
            tables, settings.features, settings.evaluation.split, world.storage, f"{world.prefix}/data"
        )
        log.add(users=data.users, items=data.items, events=data.events, positives=data.positives)
    return data


def _train(world: World, data: TrainingData, version: str) -> TwoTowerBundle:
    settings = world.settings
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
            metadata=_metadata(world, data),
            callbacks=[EpochMetrics()],
        )
        log.add(epochs=len(trained.epochs), best_epoch=trained.best_epoch, steps=trained.facts["steps"])
    return trained.bundle


def _store(world: World, bundle: TwoTowerBundle, version: str) -> StoredModel:
    with step("model_store", world.seconds, version=version) as log:
        stored = save_model(bundle, version, world.storage)
        world.database.mark(version, "stored")
        log.add(uri=stored.uri)
    return stored


def _judge(world: World, version: str, evaluation: Evaluation) -> str:
    try:
        return check_gate(evaluation, world.settings.evaluation)
    except GateError:
        world.database.mark(version, "refused")
        raise


def _load(world: World) -> FeatureTables:
    settings = world.settings
    with step("load_features", world.seconds) as log:
        tables = load_features(
            world.store,
            settings.feast,
            settings.features,
            settings.evaluation,
            as_of=world.as_of,
            side_tables=settings.side_tables,
        )
        log.add(rows=tables.rows.kept, read=tables.rows.read)
    return tables


def _encode(world: World, bundle: TwoTowerBundle) -> TrainingData:
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
    return data


def _evaluate(world: World, data: TrainingData, bundle: TwoTowerBundle) -> Evaluation:
    settings = world.settings
    with step("evaluate", world.seconds) as log:
        evaluation = evaluate_model(
            data, bundle, settings.evaluation, world.storage, exclude_seen=settings.candidates.exclude_seen
        )
        recalls = {name: value for name, value in evaluation.metrics.get("model", {}).items() if "recall@" in name}
        log.add(users=evaluation.users, **{name: round(value, 4) for name, value in recalls.items()})
    return evaluation


def _recommend(world: World, data: TrainingData, bundle: TwoTowerBundle, version: str) -> Candidates:
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
    return candidates


def _publish_once(world: World, version: str) -> UpdateReport:
    """Publish unless an earlier attempt of this run has: meanwhile another version may have gone live after it."""
    row = world.database.get(version)
    if row is not None and row.run_id == world.run_id:
        LOGGER.info("version %s was made live by an earlier attempt of run %s", version, world.run_id)
        return UpdateReport(version, {})
    return publish_version(world, version)


def _metadata(world: World, data: TrainingData) -> dict[str, Any]:
    """Return what a bundle tells about its making; the same in every attempt of a run."""
    packages = ("rec_ray", "ray", "torch", "feast", "pyarrow", "numpy")
    return {
        "run_id": world.run_id,
        "created_at": world.as_of.isoformat(),
        "data_to": data.split_times.as_of.isoformat(),
        "test_start": data.split_times.test_start.isoformat(),
        "settings": redacted(world.settings),
        "settings_hash": hash_settings(deciding_settings(world.settings)),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "rows": dataclasses.asdict(data.rows),
    }


def _counts(data: TrainingData) -> dict[str, int]:
    return {
        "interactions read": data.rows.read,
        "events used": data.events,
        "positives to learn from": data.positives,
        "users": data.users,
        "items": data.items,
    }


def _candidate_counts(candidates: Candidates) -> dict[str, int]:
    return {"users with recommendations": candidates.users, "items embedded": candidates.items}


def _update_counts(update: UpdateReport) -> dict[str, int]:
    counts = {f"rows pushed to {source}": rows for source, rows in update.rows.items()}
    return counts | {f"departed, emptied in {source}": rows for source, rows in update.departed.items() if rows}


def _report_again(run: RunLedger) -> RunReport:
    """Return what a finished run reported."""
    said = {**(run.report or {}), "finished_before": True}
    if said["evaluation"] is not None:
        said["evaluation"] = Evaluation(**said["evaluation"])
    return RunReport(**said)


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
