"""Maintenance of versions outside a run: prune files, free the lock, indexes, audit, reports again.

Input: settings. Output: a summary. Only the needed services are opened, Ray is not started, and no published version is
changed.
"""

from __future__ import annotations

from datetime import UTC, datetime

from rec_ray.config import Settings
from rec_ray.errors import DataError
from rec_ray.feature_store.online_skew import Skew
from rec_ray.feature_store.pgvector import Kind, drop_vector_index, make_vector_index
from rec_ray.feature_store.search_targets import find_search_targets
from rec_ray.publishing.audit import audit_features
from rec_ray.publishing.prune import Pruned, prune_versions
from rec_ray.publishing.push import find_push_targets
from rec_ray.reports.html import read_report, store_page
from rec_ray.runs.context import describe_owner, open_feature_store
from rec_ray.runs.ledger import new_run_id
from rec_ray.runs.stores import open_object_store, open_version_database
from rec_ray.storage.model_store import load_model, model_folder


def run_pruning(settings: Settings, keep: int) -> Pruned:
    """Remove the files of all versions but the newest `keep`, the live one and its parent."""
    database, publish = open_version_database(settings), settings.publish
    run_id = new_run_id()
    with database.publishing_lock(describe_owner(run_id), publish.lock_seconds, publish.wait_seconds, run_id) as lock:
        return prune_versions(open_object_store(settings), database, lock, keep)


def run_unlocking(settings: Settings, *, yes: bool) -> dict[str, str]:
    """Return the holder of the publishing lock, and free its lock with `yes`; its process stops at its next check.

    Raises:
        UnavailableError: the database cannot be reached.
    """
    database = open_version_database(settings)
    holder = database.lock_holder()
    if holder is None:
        return {"holder": "nobody"}
    found = {
        "holder": holder.owner,
        "held for": "unknown" if holder.age is None else f"{holder.age:,.0f} s",
        "runs out": f"{holder.expires_at:%Y-%m-%d %H:%M:%S} UTC",
    }
    if not yes:
        return found | {"done": "nothing; free it with --yes"}
    freed = database.free_lock(holder)
    return found | {"done": "freed" if freed else "nothing; the holder released it meanwhile"}


def run_indexing(settings: Settings, kind: Kind, *, drop: bool = False) -> dict[str, str]:
    """Create or drop the vector indexes that Feast does not create in PostgreSQL; return the outcome per view."""
    store = open_feature_store(settings)
    done = {}
    searched = find_search_targets(store, settings.search)
    for folder, target in {**find_push_targets(store, settings.publish), **searched}.items():
        if not target.vectors:
            continue
        if drop:
            drop_vector_index(store, target)
            done[target.view] = "dropped"
        else:
            similarity = "cosine" if folder in searched else settings.model.similarity
            made = make_vector_index(store, target, similarity, kind)
            done[target.view] = f"{kind} made" if made else "there already"
    return done


def run_audit(settings: Settings) -> list[Skew]:
    """Compare features of users and items of the live version in the online and the offline store, as of now.

    Raises:
        DataError: no version is live, or its candidates are missing.
        FeatureStoreError: a store does not respond.
    """
    live = open_version_database(settings).live()
    if live is None:
        raise DataError("no version is live, so there is nothing to audit; run: rec-ray run")
    store = open_feature_store(settings)
    return audit_features(store, open_object_store(settings), settings, live, datetime.now(UTC))


def make_report(settings: Settings, version: str) -> tuple[str, str]:
    """Render the page of a stored version again from its stored facts; return its address and its text.

    Raises:
        DataError: there is no such version, or its facts have another format.
    """
    storage = open_object_store(settings)
    facts = read_report(load_model(version, storage), version, storage, model_folder(version))
    return store_page(facts, storage, model_folder(version))
