"""Pipeline steps that change published data: publish, roll back, forget; each runs as a logged step.

Input: a `RunContext` and a version. Output: the report of the step. `pipeline` decides the order of steps.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from rec_ray.contracts import UpdateReport
from rec_ray.logs import LOGGER
from rec_ray.publishing import publish as publication
from rec_ray.publishing.forget import Forgotten, forget
from rec_ray.publishing.publish import Publisher
from rec_ray.publishing.user_encoder import make_user_encoder
from rec_ray.publishing.withdrawn_items import find_withdrawn_items
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.runs.context import RunContext, describe_owner
from rec_ray.step_events import step


def publish_once(context: RunContext, version: str) -> UpdateReport:
    """Publish unless an earlier attempt of this run did; a newer version may have become live since."""
    row = context.database.get(version)
    if row is not None and row.run_id == context.run_id:
        LOGGER.info("version %s was made live by an earlier attempt of run %s", version, context.run_id)
        publication.name_live(context.storage, context.database)
        return UpdateReport(version, {})
    return publish_version(context, version)


def publish_version(context: RunContext, version: str) -> UpdateReport:
    """Push the stored candidates of a version and make it live; raises as `publish.publish_version`."""
    with step("update_features", context.seconds, publishes=True, version=version) as running:
        report = publication.publish_version(_publisher(context), version)
        running.result = report
        running.add(**report.rows, departed=sum(report.departed.values()), **_online(report))
    return report


def encode_new_users(context: RunContext, bundle: TwoTowerBundle, version: str) -> None:
    """Store the user encoder that the backend of the replaced system loads, if `publish.legacy_user_encoder` is set."""
    settings = context.settings
    if settings.publish.legacy_user_encoder:
        with step("user_encoder", context.seconds, version=version) as running:
            agreement = make_user_encoder(context.storage, bundle, version, settings.search.text_model)
            running.add(agreement="" if agreement is None else round(agreement, 3))


def publish_increment(context: RunContext, version: str, name: str) -> UpdateReport:
    """Push an increment of the live version; raises as `publish.publish_increment`."""
    with step("update_features", context.seconds, publishes=True, version=version, increment=name) as running:
        report = publication.publish_increment(_publisher(context), version, name)
        running.result = report
        running.add(**report.rows)
    return report


def roll_back(context: RunContext, version: str) -> UpdateReport:
    """Publish a previously live version again; raises as `publish.roll_back`."""
    with step("update_features", context.seconds, publishes=True, version=version) as running:
        find_withdrawn = functools.partial(find_withdrawn_items, context.store, context.storage, context.settings.feast)
        report = publication.roll_back(_publisher(context), version, find_withdrawn)
        running.result = report
        running.add(**report.rows, departed=sum(report.departed.values()), **_online(report))
    return report


def forget_ids(context: RunContext, users: Sequence[str], items: Sequence[str]) -> Forgotten:
    """Forget users and items, and push the live version again if its lists contained a forgotten item."""
    with step("forget", context.seconds) as running:
        done = forget(_publisher(context), users, items)
        running.add(users=done.users, items=done.items, candidates=len(done.candidates), files=len(done.files))
    if done.republish is not None:
        publish_version(context, done.republish)
    return done


def _online(report: UpdateReport) -> dict[str, str]:
    """Return the materialised views for the log line: published ids with a row, of those looked up."""
    return {f"online_{view}": f"{there}/{ids}" for view, (ids, there) in report.online.items()}


def _publisher(context: RunContext) -> Publisher:
    settings = context.settings
    return Publisher(
        context.store,
        context.storage,
        context.database,
        settings.publish,
        settings.search,
        settings.feast,
        describe_owner(context.run_id),
        context.run_id,
    )
