"""Order of the steps: read this first.

Each function takes settings and returns a `RunReport` with metrics, counts, seconds and locations. `open_context` opens
the object store, the database, Feast and Ray once; `line` passes each step its part of them. Logic of steps is
elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rec_ray.candidate_store.increments import LAST, begin_increment, find_recorded_timelines
from rec_ray.config import Settings
from rec_ray.contracts import (
    Candidates,
    Evaluation,
    SearchVectors,
    StoredModel,
    TrainedModel,
    TrainingData,
    TuningResult,
    UpdateReport,
)
from rec_ray.evaluation.gate import advise
from rec_ray.feature_store.api import FeatureStore
from rec_ray.feature_store.push_targets import is_published
from rec_ray.logs import LOGGER
from rec_ray.night_checks import check_data, check_lists, check_online, require_lists, worse
from rec_ray.preflight import check_definitions, complete_settings
from rec_ray.publishing.forget import Forgotten
from rec_ray.publishing.steps import (
    encode_new_users,
    forget_ids,
    publish_increment,
    publish_once,
    publish_version,
    roll_back,
)
from rec_ray.retrieval.model.bundle import TwoTowerBundle, as_evaluated
from rec_ray.runs.context import RunContext, open_context, open_feature_store
from rec_ray.runs.ledger import RunLedger, open_run
from rec_ray.runs.stores import open_object_store
from rec_ray.runs.summary import (
    RunReport,
    count_candidates,
    count_data,
    count_search,
    count_update,
    note_unpublished,
    report_run,
    report_tuning,
    restore_report,
)
from rec_ray.sample.run_features import DecidedFeatures
from rec_ray.step_events import step
from rec_ray.steps import (
    check_search,
    encode_data,
    encode_search,
    evaluate_version,
    find_active,
    judge_model,
    prepare_data,
    recommend_items,
    reserve_version,
    store_model,
    train_model,
    write_page,
)
from rec_ray.storage.model_store import find_model, load_model, newest_version


def run_pipeline(settings: Settings, *, run_id: str | None = None) -> RunReport:
    """Run all steps; the last one writes the version row, which makes the model live.

    run_id: resumes a failed run of this id after its last finished step; for a finished run nothing is done.

    Raises:
        GateError: the model is stored, but not published.
        RecRayError: `errors` lists the other ones.
    """
    with open_run(open_object_store(settings), settings, "run", run_id) as run:
        if run.report is not None:
            return restore_report(run)
        store = open_feature_store(settings)
        settings = _complete(run, store, settings)
        check_definitions(store, settings)
        publishes = is_published(store, settings.publish)
        with open_context(settings, run) as context:
            check_search(context)
            data, bundle, evaluation, stored = _learn(context, run)
            verdict = judge_model(context, data, bundle, stored.version, evaluation)
            candidates = run.once(
                "candidates", Candidates, lambda: recommend_items(context, data, bundle, stored.version)
            )
            lists = check_lists(context, candidates, stored.version)
            verdict = worse(verdict, lists)
            search = run.once("search_vectors", SearchVectors, lambda: encode_search(context, data, stored.version))
            counts = count_data(data) | count_candidates(candidates) | count_search(search)
            page = write_page(context, data, bundle, evaluation, stored.version, counts, verdict)
            require_lists(context, stored.version, lists)
            encode_new_users(context, bundle, stored.version)
            if publishes:
                update = run.once("update_features", UpdateReport, lambda: publish_once(context, stored.version))
                counts |= count_update(update)
                check_online(context, stored.version)
            report = report_run(context, "run", stored, evaluation, counts, verdict, page, advise(evaluation, settings))
            report = report if publishes else note_unpublished(report)
        run.finish(report)
        return report


def run_training(settings: Settings, *, run_id: str | None = None) -> RunReport:
    """Train, evaluate and store a model under a new version, without publishing. run_id: as in `run_pipeline`."""
    with open_run(open_object_store(settings), settings, "train", run_id) as run:
        if run.report is not None:
            return restore_report(run)
        store = open_feature_store(settings)
        settings = _complete(run, store, settings)
        check_definitions(store, settings)
        with open_context(settings, run) as context:
            data, bundle, evaluation, stored = _learn(context, run, publishes=False)
            page = write_page(context, data, bundle, evaluation, stored.version, count_data(data), "")
            advice = advise(evaluation, settings)
            report = report_run(context, "train", stored, evaluation, count_data(data), page=page, advice=advice)
        run.finish(report)
        return report


def run_tuning(settings: Settings, *, run_id: str | None = None) -> RunReport:
    """Search for better settings of model and train on the current data, and store all trials and the best settings.

    Nothing is applied: the report contains the command that trains with the best settings. run_id: as in
    `run_pipeline`.
    """
    with open_run(open_object_store(settings), settings, "tune", run_id) as run:
        if run.report is not None:
            return restore_report(run)
        check_definitions(open_feature_store(settings), settings)
        with open_context(settings, run) as context:
            data = run.once("training_data", TrainingData, lambda: prepare_data(context))
            found = run.once("tune", TuningResult, lambda: _tune(context, data))
            report = report_tuning(context, found, count_data(data))
        run.finish(report)
        return report


def run_evaluation(settings: Settings, version: str) -> RunReport:
    """Evaluate a stored version on the current data in Feast."""
    with open_context(settings) as context:
        bundle = load_model(version, context.storage)
        data = encode_data(context, bundle)
        evaluation = evaluate_version(context, data, as_evaluated(bundle), version)
        stored, advice = find_model(version, context.storage), advise(evaluation, settings)
        return report_run(context, "evaluate", stored, evaluation, count_data(data), advice=advice)


def run_candidates(settings: Settings, version: str | None = None, *, publish: bool = False) -> RunReport:
    """Compute and store the candidates of a version (default: newest stored) from the current data in Feast.

    publish: also push them and make the version live.
    """
    with open_context(settings) as context:
        version = version or newest_version(context.storage)
        bundle = load_model(version, context.storage)
        data = encode_data(context, bundle)
        counts = count_data(data) | count_candidates(recommend_items(context, data, bundle, version))
        counts |= count_search(encode_search(context, data, version))
        encode_new_users(context, bundle, version)
        counts |= count_update(publish_version(context, version)) if publish else {}
        return report_run(context, "candidates", find_model(version, context.storage), None, counts)


def run_increment(settings: Settings, version: str | None, since: str, *, publish: bool = False) -> RunReport:
    """Recompute the lists of users with events since a time, with the model and the items of a version.

    version: default: the live one. since: see `increments.start_of_increment`. publish: also push them; the version
    must be live, and stays live.
    """
    with open_context(settings) as context:
        version = version or context.database.live() or newest_version(context.storage)
        bundle = load_model(version, context.storage)
        increment = begin_increment(context.storage, version, since, context.as_of)
        recorded = None
        if since == LAST:
            recorded = find_recorded_timelines(context.storage, version, context.database.erased())
            if recorded is None:
                LOGGER.warning(
                    "the candidates of version %s have no record of timelines: events since %s count, late ones do "
                    "not; make the record with: rec-ray candidates %s",
                    version,
                    f"{increment.since:%Y-%m-%d %H:%M} UTC",
                    version,
                )
        active = find_active(context, increment.since, recorded)
        counts = {"users with events since" if recorded is None else "users with changed events": active.count}
        if active.count:
            data = encode_data(context, bundle, active=active, item_ids=increment.item_ids)
            counts |= count_data(data) | count_candidates(
                recommend_items(context, data, bundle, version, increment.name)
            )
            counts |= count_update(publish_increment(context, version, increment.name)) if publish else {}
        return report_run(context, "candidates", find_model(version, context.storage), None, counts)


def run_publishing(settings: Settings, version: str | None = None, *, increment: str | None = None) -> RunReport:
    """Push the stored candidates of a version (default: newest stored) to Feast and make it live.

    increment: name of an increment of the live version, or `newest`; only that is pushed, and the version stays live.
    """
    with open_context(settings) as context:
        if increment is not None:
            version = version or context.database.live() or newest_version(context.storage)
            counts = count_update(publish_increment(context, version, increment))
        else:
            version = version or newest_version(context.storage)
            counts = count_update(publish_version(context, version))
        return report_run(context, "publish", find_model(version, context.storage), None, counts)


def run_rollback(settings: Settings, version: str) -> RunReport:
    """Push the stored candidates of a previously live version and make it live again, without loading its model."""
    with open_context(settings) as context:
        counts = count_update(roll_back(context, version))
        return report_run(context, "rollback", find_model(version, context.storage), None, counts)


def run_forgetting(settings: Settings, users: Sequence[str], items: Sequence[str]) -> Forgotten:
    """Forget users and items; see `forgetting.forget`."""
    with open_context(settings) as context:
        return forget_ids(context, users, items)


def _complete(run: RunLedger, store: FeatureStore, settings: Settings) -> Settings:
    """Return the settings with the decisions of `features: auto`, equal in all attempts of a run."""
    return complete_settings(store, settings, lambda decide: run.once("features", DecidedFeatures, decide))


def _learn(
    context: RunContext, run: RunLedger, *, publishes: bool = True
) -> tuple[TrainingData, TwoTowerBundle, Evaluation, StoredModel]:
    version = reserve_version(context)
    data = run.once("training_data", TrainingData, lambda: prepare_data(context))
    check_data(context, data, version, publishes=publishes)
    trained = run.once("train", TrainedModel, lambda: train_model(context, data, version))
    evaluation = run.once(
        "evaluate",
        Evaluation,
        lambda: evaluate_version(context, data, trained.bundle, version, refitted=trained.checked),
    )
    metadata = {
        **trained.bundle.metadata,
        "metrics": evaluation.metrics,
        "evaluation": dataclasses.asdict(evaluation.facts),
    }
    bundle = dataclasses.replace(trained.published, metadata=metadata)
    return data, bundle, evaluation, run.once("model_store", StoredModel, lambda: store_model(context, bundle, version))


def _tune(context: RunContext, data: TrainingData) -> TuningResult:
    """Try settings of model and train on the encoded data, and store all trials."""
    # Ray Tune is loaded by this step only.
    from rec_ray.training.tune import TrainingInputs, tune_settings

    settings = context.settings
    with step("tune", context.seconds, minutes=settings.tune.minutes) as running:
        inputs = TrainingInputs(
            data,
            settings.model,
            settings.train,
            settings.ray,
            settings.evaluation,
            settings.candidates.exclude_seen,
            context.storage,
        )
        trials = tune_settings(inputs, settings.tune, name=context.run_id)
        running.add(trials=len(trials), best=round(trials[0].validation_ndcg, 4))
    return TuningResult(tuple(trials))
