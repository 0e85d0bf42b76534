"""The order of the steps, and nothing else: read this first.

Settings come in; `open_world` opens the object store, the database, Feast and Ray once and hands them to the steps; a
`RunReport` with the figures, the seconds and the addresses goes out. It knows which step follows which and when a
version becomes live, and holds no logic of any step.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
from typing import Any

import pyarrow as pa

from rec_ray.candidates import generate_candidates
from rec_ray.config import FeatureSettings, Settings, deciding_settings, hash_settings, redacted
from rec_ray.contracts import (
    ActiveUsers,
    Candidates,
    Evaluation,
    FeatureTables,
    LiveVersion,
    StoredModel,
    TrainedModel,
    TrainingData,
    UpdateReport,
)
from rec_ray.encode_text import HASHING, encode_item_text
from rec_ray.errors import DataError, GateError
from rec_ray.evaluate import evaluate_model
from rec_ray.feast_store import read_items
from rec_ray.gate import check_gate, find_reasons
from rec_ray.increments import begin_increment, find_active, increments_folder
from rec_ray.load_features import load_features
from rec_ray.logs import LOGGER, step
from rec_ray.model_store import candidates_folder, find_model, load_model, model_folder, save_model
from rec_ray.publication import Pruned, prune_versions, publish_increment, publish_version, roll_back
from rec_ray.retrieval.bundle import TwoTowerBundle, as_evaluated
from rec_ray.run_ledger import RunLedger, open_run
from rec_ray.run_metrics import EpochMetrics
from rec_ray.run_report import RunReport, count_candidates, count_data, count_update, report_again, report_run
from rec_ray.schema import EMBEDDING
from rec_ray.storage import Storage
from rec_ray.train import train_two_tower
from rec_ray.training_data import encode_tables, prepare_training_data
from rec_ray.update_features import check_push_targets, find_push_targets
from rec_ray.vector_index import Kind, drop_vector_index, make_vector_index
from rec_ray.world import World, database_of, feature_store_of, open_world, owner_of, storage_of
from rec_ray.write_report import RunFigures, read_report, store_page, write_report


def run_pipeline(settings: Settings, *, run_id: str | None = None) -> RunReport:
    """Do the whole line: the version row, which makes the model live, is the last thing written.

    run_id: a run of this id that did not end well goes on behind its last finished step; one that did is left alone.

    Raises:
        GateError: the model is stored and was not published.
        RecRayError: see `errors` for the others.
    """
    with open_run(storage_of(settings), settings, "run", run_id) as run:
        if run.report is not None:
            return report_again(run)
        with open_world(settings, run) as world:
            check_push_targets(world.store, settings.publish, settings.model.similarity, settings.model.embedding_size)
            data, bundle, evaluation, stored = _learn(world, run)
            verdict = _judge(world, data, bundle, stored.version, evaluation)
            candidates = run.once("candidates", Candidates, lambda: _recommend(world, data, bundle, stored.version))
            counts = count_data(data) | count_candidates(candidates)
            page = _write_report(world, data, bundle, evaluation, stored.version, counts, verdict)
            update = run.once("update_features", UpdateReport, lambda: _publish_once(world, stored.version))
            report = report_run(world, "run", stored, evaluation, counts | count_update(update), verdict, page)
        run.finish(report)
        return report


def run_training(settings: Settings, *, run_id: str | None = None) -> RunReport:
    """Train, evaluate and store a model under a new version; nothing is published. run_id: as in `run_pipeline`."""
    with open_run(storage_of(settings), settings, "train", run_id) as run:
        if run.report is not None:
            return report_again(run)
        with open_world(settings, run) as world:
            data, bundle, evaluation, stored = _learn(world, run)
            page = _write_report(world, data, bundle, evaluation, stored.version, count_data(data), "")
            report = report_run(world, "train", stored, evaluation, count_data(data), page=page)
        run.finish(report)
        return report


def run_evaluation(settings: Settings, version: str) -> RunReport:
    """Evaluate a stored version on what Feast holds now."""
    with open_world(settings) as world:
        bundle = load_model(version, world.storage)
        data = _encode(world, bundle)
        evaluation = _evaluate(world, data, as_evaluated(bundle), version)
        return report_run(world, "evaluate", find_model(version, world.storage), evaluation, count_data(data))


def run_candidates(settings: Settings, version: str | None = None, *, publish: bool = False) -> RunReport:
    """Compute and store the candidates of a version (default: the newest stored) from what Feast holds now.

    publish: push them, too, and make the version live.
    """
    with open_world(settings) as world:
        version = version or newest_version(world.storage)
        bundle = load_model(version, world.storage)
        data = _encode(world, bundle)
        counts = count_data(data) | count_candidates(_recommend(world, data, bundle, version))
        counts |= count_update(publish_version(world, version)) if publish else {}
        return report_run(world, "candidates", find_model(version, world.storage), None, counts)


def run_increment(settings: Settings, version: str | None, since: str, *, publish: bool = False) -> RunReport:
    """Compute the lists of users with events since some time anew, with the model and the items of a version.

    version: default: the live one. since: see `increments.start_of_increment`. publish: push them, too; the version
    must be the live one, and stays it.
    """
    with open_world(settings) as world:
        version = version or world.database.live() or newest_version(world.storage)
        bundle = load_model(version, world.storage)
        increment = begin_increment(world, version, since)
        active = find_active(world, increment.since)
        counts = {"users with events since": active.count}
        if active.count:
            data = _encode(world, bundle, active=active, item_ids=increment.item_ids)
            counts |= count_data(data) | count_candidates(_recommend(world, data, bundle, version, increment.name))
            counts |= count_update(publish_increment(world, version, increment.name)) if publish else {}
        return report_run(world, "candidates", find_model(version, world.storage), None, counts)


def run_publishing(settings: Settings, version: str | None = None, *, increment: str | None = None) -> RunReport:
    """Push the stored candidates of a version (default: the newest stored) to Feast and make it live.

    increment: name of an increment, or `newest`: only that is pushed, of the live version, which stays the live one.
    """
    with open_world(settings) as world:
        if increment is not None:
            version = version or world.database.live() or newest_version(world.storage)
            counts = count_update(publish_increment(world, version, increment))
        else:
            version = version or newest_version(world.storage)
            counts = count_update(publish_version(world, version))
        return report_run(world, "publish", find_model(version, world.storage), None, counts)


def run_rollback(settings: Settings, version: str) -> RunReport:
    """Push the stored candidates of a version that was live before, and make it live again; no model is loaded."""
    with open_world(settings) as world:
        counts = count_update(roll_back(world, version))
        return report_run(world, "rollback", find_model(version, world.storage), None, counts)


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


def make_report(settings: Settings, version: str) -> tuple[str, str]:
    """Make the page of a stored version again, from what is stored with it; return its address and its text.

    Raises:
        DataError: there is no such version, or what is stored is of another format.
    """
    storage = storage_of(settings)
    facts = read_report(load_model(version, storage), version, storage, model_folder(version))
    return store_page(facts, storage, model_folder(version))


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
    trained = run.once("train", TrainedModel, lambda: _train(world, data, version))
    evaluation = run.once(
        "evaluate", Evaluation, lambda: _evaluate(world, data, trained.bundle, version, refitted=trained.checked)
    )
    metadata = {**trained.bundle.metadata, "metrics": evaluation.metrics, "evaluation": evaluation.facts}
    bundle = dataclasses.replace(trained.published, metadata=metadata)
    return data, bundle, evaluation, run.once("model_store", StoredModel, lambda: _store(world, bundle, version))


def _reserve(world: World) -> str:
    with step("reserve", world.seconds) as log:
        version = world.database.reserve(world.run_id)
        log.add(version=version)
    return version


def _prepare(world: World) -> TrainingData:
    settings = world.settings
    tables, features = _load(world, settings.features.text_encoder)
    with step("training_data", world.seconds) as log:
        data = prepare_training_data(
            tables,
            features,
            settings.evaluation.split,
            world.storage,
            f"{world.prefix}/data",
            refit=settings.train.refit != "off",
        )
        log.add(users=data.users, items=data.items, events=data.events, positives=data.positives)
    return data


def _train(world: World, data: TrainingData, version: str) -> TrainedModel:
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
            live=_live_bundle(world),
        )
        log.add(
            epochs=len(trained.epochs),
            best_epoch=trained.best_epoch,
            steps=trained.facts["steps"],
            refit=settings.train.refit,
        )
    return trained


def _store(world: World, bundle: TwoTowerBundle, version: str) -> StoredModel:
    with step("model_store", world.seconds, version=version) as log:
        stored = save_model(bundle, version, world.storage)
        world.database.mark(version, "stored")
        log.add(uri=stored.uri)
    return stored


def _judge(world: World, data: TrainingData, bundle: TwoTowerBundle, version: str, evaluation: Evaluation) -> str:
    try:
        return check_gate(evaluation, world.settings.evaluation)
    except GateError:
        world.database.mark(version, "refused")
        _write_report(world, data, bundle, evaluation, version, count_data(data), "refused")
        raise


def _live_bundle(world: World) -> TwoTowerBundle | None:
    """Return the live version to begin with, if the settings ask for it and there is one."""
    if world.settings.train.warm_start == "off":
        return None
    live = world.database.live()
    return None if live is None else load_model(live, world.storage)


def _load(world: World, text_encoder: str, active: ActiveUsers | None = None) -> tuple[FeatureTables, FeatureSettings]:
    """Return what Feast holds, and the features by which it is read: a text encoder changes both."""
    settings = world.settings
    with step("load_features", world.seconds) as log:
        tables = load_features(
            world.store,
            settings.feast,
            settings.features,
            settings.evaluation,
            as_of=world.as_of,
            side_tables=settings.side_tables,
            candidates=settings.candidates,
            active=active,
        )
        log.add(rows=tables.rows.kept, read=tables.rows.read)
    if text_encoder == HASHING:
        return tables, settings.features
    with step("encode_text", world.seconds, encoder=text_encoder) as log:
        text = encode_item_text(tables, settings.features, text_encoder, world.storage)
        log.add(encoded=text.encoded, kept=text.kept)
    return text.tables, text.features


def _encode(
    world: World,
    bundle: TwoTowerBundle,
    folder: str = "data",
    *,
    active: ActiveUsers | None = None,
    item_ids: pa.Array | None = None,
) -> TrainingData:
    """Encode what Feast holds for a stored model, below the prefix of the run."""
    settings = world.settings
    tables, features = _load(world, str(bundle.metadata.get("text_encoder") or HASHING), active)
    with step("training_data", world.seconds) as log:
        data = encode_tables(
            tables,
            bundle.preprocessor,
            features,
            settings.evaluation.split,
            world.storage,
            f"{world.prefix}/{folder}",
            item_ids=item_ids,
        )
        log.add(users=data.users, items=data.items, events=data.events)
    return data


def _evaluate(
    world: World, data: TrainingData, bundle: TwoTowerBundle, version: str, *, refitted: TwoTowerBundle | None = None
) -> Evaluation:
    settings = world.settings
    live = _live(world, beside=version)
    with step("evaluate", world.seconds) as log:
        evaluation = evaluate_model(
            data,
            bundle,
            settings.evaluation,
            world.storage,
            candidates=settings.candidates,
            live=live,
            refitted=refitted,
        )
        recalls = {name: value for name, value in evaluation.metrics.get("model", {}).items() if "recall@" in name}
        log.add(users=evaluation.users, **{name: round(value, 4) for name, value in recalls.items()})
    return evaluation


def _live(world: World, *, beside: str) -> LiveVersion | None:
    """Return the live version with the same events encoded for it; None where there is none to compare with."""
    version = world.database.live()
    if version is None or version == beside:
        return None
    try:
        bundle = as_evaluated(load_model(version, world.storage))
        return LiveVersion(version, bundle, _encode(world, bundle, "live"))
    except DataError as error:
        LOGGER.warning("the live version %s is not compared: %s", version, error)
        return None


def _write_report(
    world: World,
    data: TrainingData,
    bundle: TwoTowerBundle,
    evaluation: Evaluation,
    version: str,
    counts: dict[str, int],
    gate: str,
) -> str:
    settings = world.settings
    reasons = tuple(find_reasons(evaluation, settings.evaluation))
    run = RunFigures(gate, reasons, counts, dict(world.seconds))
    read_fields = functools.partial(read_items, world.store, settings.feast.item_service, settings.feast.item_key)
    with step("report", world.seconds, version=version) as log:
        page = write_report(
            bundle,
            version,
            evaluation,
            data,
            world.storage,
            model_folder(version),
            read_fields,
            item_name=settings.features.item_name,
            run=run,
        )
        log.add(page=page)
    return page


def _recommend(
    world: World, data: TrainingData, bundle: TwoTowerBundle, version: str, increment: str | None = None
) -> Candidates:
    settings = world.settings
    if increment is None:
        # They are older than what comes now.
        world.storage.delete_prefix(increments_folder(version))
    with step("candidates", world.seconds, version=version) as log:
        candidates = generate_candidates(
            data,
            bundle,
            settings.candidates,
            world.storage,
            version=version,
            prefix=f"{increments_folder(version)}/{increment}" if increment else candidates_folder(version),
            items_of=candidates_folder(version) if increment else None,
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
        "text_encoder": world.settings.features.text_encoder,
        "settings": redacted(world.settings),
        "settings_hash": hash_settings(deciding_settings(world.settings)),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "rows": dataclasses.asdict(data.rows),
    }
