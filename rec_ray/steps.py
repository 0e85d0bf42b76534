"""Steps of the pipeline, each called with its part of the context of the run, logged and timed.

Every function takes a `RunContext` and the objects of earlier steps and returns the object of its step. The order of
the steps is in `pipeline`, their logic in modules of their own.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
from datetime import datetime
from typing import Any

import pyarrow as pa

from rec_ray.candidate_store.increments import RecordedTimelines, increments_folder
from rec_ray.candidate_store.manifest import PENDING
from rec_ray.candidates.generate import generate_candidates
from rec_ray.config import FeatureSettings, deciding_settings, hash_settings, redact_settings
from rec_ray.config.decided_features import with_stored_features
from rec_ray.contracts import (
    ActiveUsers,
    Candidates,
    Evaluation,
    FeatureTables,
    LiveVersion,
    SearchVectors,
    StoredModel,
    TrainedModel,
    TrainingData,
)
from rec_ray.data.item_texts import HASHING, encode_item_text
from rec_ray.data.load_features import find_active_users, find_changed_users, load_features
from rec_ray.data.removed_features import add_removed_features, removed_features
from rec_ray.data.training_data import encode_tables, prepare_training_data
from rec_ray.errors import DataError, GateError, find_known_cause, list_names
from rec_ray.evaluation.evaluate import evaluate_model
from rec_ray.evaluation.gate import check_gate, check_quality, find_loss, find_reasons
from rec_ray.feature_store.point_in_time import read_items
from rec_ray.feature_store.search_targets import check_search_targets, find_search_targets, list_unfed_views
from rec_ray.logs import LOGGER
from rec_ray.publishing.commit_candidates import LOCK_WAIT_SECONDS, commit_candidates, reopen_candidates
from rec_ray.publishing.forget import rewrite_candidates
from rec_ray.reports.html import RunFigures, write_report
from rec_ray.retrieval.model.bundle import TwoTowerBundle, as_evaluated
from rec_ray.runs.check_records import read_checks, record_checks
from rec_ray.runs.context import RunContext, describe_owner
from rec_ray.runs.epochs import EpochReports, show_epochs
from rec_ray.runs.metrics import EpochMetrics
from rec_ray.runs.summary import count_data
from rec_ray.search_views.vectors import find_search_dimensions, make_search_vectors
from rec_ray.step_events import step
from rec_ray.storage.model_store import candidates_folder, load_model, save_model
from rec_ray.training.trainer import train_two_tower


def check_search(context: RunContext) -> None:
    """Check the search views before hours of training and warn of those without an encoder.

    Raises:
        ConfigError, SchemaError: a model or a push source is missing, or a view does not fit.
    """
    search = context.settings.search
    for note in list_unfed_views(context.store, search):
        LOGGER.warning("%s", note)
    find_search_targets(context.store, search)
    check_search_targets(context.store, search, find_search_dimensions(search))


def find_active(context: RunContext, since: datetime, recorded: RecordedTimelines | None) -> ActiveUsers:
    """Find the users with an event since some time or, with recorded timelines, those whose timelines changed."""
    settings = context.settings
    opened = context.store, settings.feast, settings.features, context.as_of
    with step("active_users", context.seconds, since=f"{since:%Y-%m-%dT%H:%M:%SZ}") as log:
        if recorded is None:
            active = find_active_users(*opened, since, settings.side_tables)
        else:
            active = find_changed_users(*opened, recorded, settings.side_tables)
        log.add(users=active.count)
    return active


def reserve_version(context: RunContext) -> str:
    """Reserve the version number of the run; every attempt of a run gets the same one."""
    with step("reserve", context.seconds) as running:
        version = context.database.reserve(context.run_id)
        running.add(version=version)
    return version


def prepare_data(context: RunContext) -> TrainingData:
    """Load the tables from Feast, fit the preprocessor and write the encoded timelines."""
    settings = context.settings
    tables, features = _load(context, settings.features.text_encoder)
    with step("training_data", context.seconds) as running:
        data = prepare_training_data(
            tables,
            features,
            settings.evaluation.split,
            context.storage,
            f"{context.prefix}/data",
            refit=settings.train.refit != "off",
        )
        running.add(users=data.users, items=data.items, events=data.events, positives=data.positives)
    return data


def train_model(context: RunContext, data: TrainingData, version: str) -> TrainedModel:
    """Train the towers, starting from the live version if `train.warm_start` is live."""
    settings = context.settings
    with step("train", context.seconds, version=version) as running, show_epochs() as epochs:
        trained = train_two_tower(
            data,
            settings.model,
            settings.train,
            settings.ray,
            context.storage,
            run_id=context.run_id,
            validation_users=settings.evaluation.validation_users,
            exclude_seen=settings.candidates.exclude_seen,
            metadata=_metadata(context, data),
            callbacks=[EpochMetrics(), EpochReports(epochs)],
            live=_live_bundle(context),
        )
        running.add(
            epochs=len(trained.epochs),
            best_epoch=trained.best_epoch,
            steps=trained.facts.steps,
            history=trained.facts.history,
            refit=settings.train.refit,
        )
        running.result = trained
    return trained


def store_model(context: RunContext, bundle: TwoTowerBundle, version: str) -> StoredModel:
    """Store the model under its version."""
    with step("model_store", context.seconds, version=version) as running:
        stored = save_model(bundle, version, context.storage)
        context.database.mark(version, "stored")
        running.add(uri=stored.uri)
    return stored


def judge_model(
    context: RunContext, data: TrainingData, bundle: TwoTowerBundle, version: str, evaluation: Evaluation
) -> str:
    """Run the gate and return its verdict.

    Raises:
        GateError: the gate refuses; the report of the version is written nevertheless.
    """
    settings = context.settings.evaluation
    record_checks(context.storage, version, ["learning", "geometry", "quality"], check_quality(evaluation, settings))
    try:
        return check_gate(evaluation, settings)
    except GateError as error:
        context.database.mark(version, "refused", reason=str(error))
        write_page(context, data, bundle, evaluation, version, count_data(data), "refused")
        raise


def _live_bundle(context: RunContext) -> TwoTowerBundle | None:
    """Return the bundle of the live version for a warm start; None if that is off or no version is live."""
    if context.settings.train.warm_start == "off":
        return None
    live = context.database.live()
    return None if live is None else load_model(live, context.storage)


def _load(
    context: RunContext, text_encoder: str, active: ActiveUsers | None = None, *, live: bool = False
) -> tuple[FeatureTables, FeatureSettings]:
    """Load the tables from Feast; return them with their feature settings, since a text encoder changes both.

    live: for the live version; rows count as read only once, for the new one.
    """
    settings = context.settings
    with step("live_features" if live else "load_features", context.seconds) as running:
        tables = load_features(
            context.store,
            settings.feast,
            settings.features,
            settings.evaluation,
            as_of=context.as_of,
            side_tables=settings.side_tables,
            candidates=settings.candidates,
            raw_of_items=settings.search.item_fields if active is None else None,
            active=active,
        )
        erased = context.database.erased()
        if erased:
            tables = tables.map_rows(erased.without)
        running.add(rows=tables.rows.kept, read=tables.rows.read)
        if not live:
            running.result = tables.rows
    if text_encoder == HASHING:
        return tables, settings.features
    with step("encode_text", context.seconds, encoder=text_encoder) as running:
        text = encode_item_text(tables, settings.features, text_encoder, context.storage)
        running.add(encoded=text.encoded, kept=text.kept)
    return text.tables, text.features


def encode_data(
    context: RunContext,
    bundle: TwoTowerBundle,
    folder: str = "data",
    *,
    active: ActiveUsers | None = None,
    item_ids: pa.Array | None = None,
    live: bool = False,
) -> TrainingData:
    """Load and encode the data for a stored model, below the prefix of the run.

    live: it is the live version, which takes features as unknown that the settings no longer declare.
    """
    context = dataclasses.replace(context, settings=with_stored_features(context.settings, bundle.metadata))
    settings = context.settings
    tables, features = _load(context, str(bundle.metadata.get("text_encoder") or HASHING), active, live=live)
    if live:
        tables = add_removed_features(tables, bundle.preprocessor, features)
    with step("live_data" if live else "training_data", context.seconds) as running:
        data = encode_tables(
            tables,
            bundle.preprocessor,
            features,
            settings.evaluation.split,
            context.storage,
            f"{context.prefix}/{folder}",
            item_ids=item_ids,
        )
        running.add(users=data.users, items=data.items, events=data.events)
    return data


def evaluate_version(
    context: RunContext,
    data: TrainingData,
    bundle: TwoTowerBundle,
    version: str,
    *,
    refitted: TwoTowerBundle | None = None,
) -> Evaluation:
    """Evaluate a model against the baselines and the live version, unless its own `version` is live."""
    settings = context.settings
    live = _load_live(context, other_than=version)
    with step("evaluate", context.seconds) as running:
        evaluation = evaluate_model(
            data,
            bundle,
            settings.evaluation,
            context.storage,
            candidates=settings.candidates,
            live=live,
            refitted=refitted,
        )
        recalls = {name: value for name, value in evaluation.metrics.get("model", {}).items() if "recall@" in name}
        running.add(users=evaluation.users, **{name: round(value, 4) for name, value in recalls.items()})
        running.result = evaluation
    return evaluation


def _load_live(context: RunContext, *, other_than: str) -> LiveVersion | None:
    """Return the live version with the same events encoded for it; None without another version that is live."""
    version = context.database.live()
    if version is None or version == other_than:
        return None
    try:
        bundle = as_evaluated(load_model(version, context.storage))
        data = encode_data(context, bundle, "live", live=True)
    except Exception as error:
        # A task of Ray wraps its error in a traceback of pages.
        cause = find_known_cause(error)
        if not isinstance(cause, DataError):
            raise
        LOGGER.warning("the live version %s is not compared: %s", version, cause)
        return None
    without = removed_features(bundle.preprocessor, context.settings.features)
    if without:
        LOGGER.warning("the live version %s is compared without %s", version, list_names(without))
    return LiveVersion(version, bundle, data, without)


def write_page(
    context: RunContext,
    data: TrainingData,
    bundle: TwoTowerBundle,
    evaluation: Evaluation,
    version: str,
    counts: dict[str, int],
    gate: str,
) -> str:
    """Write the report of a version and return its address. gate: its verdict, or empty."""
    settings = context.settings
    loss = find_loss(evaluation)
    reasons = (*find_reasons(evaluation, settings.evaluation), *([loss] if loss else []))
    checks = tuple(read_checks(context.storage, version))
    run = RunFigures(gate, reasons, counts, dict(context.seconds), checks)
    read_fields = functools.partial(read_items, context.store, settings.feast)
    with step("report", context.seconds, version=version) as running:
        page = write_report(
            bundle,
            version,
            evaluation,
            data,
            context.storage,
            read_fields,
            item_name=settings.features.item_name,
            run=run,
        )
        running.add(page=page)
    return page


def recommend_items(
    context: RunContext, data: TrainingData, bundle: TwoTowerBundle, version: str, increment: str | None = None
) -> Candidates:
    """Compute and store the candidates of a version, or of an increment of it."""
    settings = context.settings
    prefix = f"{increments_folder(version)}/{increment}" if increment else candidates_folder(version)
    with step("candidates", context.seconds, version=version) as running:
        candidates = generate_candidates(
            data,
            bundle,
            settings.candidates,
            context.storage,
            version=version,
            prefix=prefix,
            items_of=candidates_folder(version) if increment else None,
            manifest_name=PENDING,
        )
        if increment is not None:
            _commit_candidates(context, version, prefix)
        running.add(users=candidates.users, items=candidates.items, k=candidates.k, **candidates.facts)
        running.result = candidates
    return candidates


def encode_search(context: RunContext, data: TrainingData, version: str) -> SearchVectors:
    """Add the vectors of search views to computed candidates, and make both the candidates of the version."""
    search, made = context.settings.search, SearchVectors(version)
    if search.vectors:
        reopen_candidates(context.storage, candidates_folder(version))
        made = _make_search_vectors(context, data, version)
    _commit_candidates(context, version, candidates_folder(version))
    return made


def _commit_candidates(context: RunContext, version: str, prefix: str) -> None:
    publish = context.settings.publish
    wait = max(publish.wait_seconds, LOCK_WAIT_SECONDS)
    lock = context.database.publishing_lock(describe_owner(context.run_id), publish.lock_seconds, wait, context.run_id)
    erased = context.database.erased()
    if erased:
        # They may have been forgotten after the data were read.
        rewrite_candidates(context.storage, context.database, version, prefix, PENDING, erased)
    commit_candidates(context.storage, context.database, version, prefix, lock)


def _make_search_vectors(context: RunContext, data: TrainingData, version: str) -> SearchVectors:
    search = context.settings.search
    with step("search_vectors", context.seconds, version=version) as running:
        made = make_search_vectors(
            data,
            search,
            context.storage,
            version=version,
            prefix=candidates_folder(version),
            repo=str(context.store.repo_path),
        )
        running.add(**made.rows, encoded=made.encoded, kept=made.kept, unreadable=made.unreadable)
    return made


def _metadata(context: RunContext, data: TrainingData) -> dict[str, Any]:
    """Return the metadata of the run for its bundle; equal in every attempt of a run."""
    packages = ("rec_ray", "ray", "torch", "feast", "pyarrow", "numpy")
    return {
        "run_id": context.run_id,
        "created_at": context.as_of.isoformat(),
        "data_to": data.split_times.as_of.isoformat(),
        "test_start": data.split_times.test_start.isoformat(),
        "text_encoder": context.settings.features.text_encoder,
        "settings": redact_settings(context.settings),
        "settings_hash": hash_settings(deciding_settings(context.settings)),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "rows": dataclasses.asdict(data.rows),
    }
