"""Features of the published users and items in the online store, before a reader meets their ids in a list.

Input: a store, the candidates to publish and the settings. Afterwards the online store has the newest rows of the views
that `publish.materialize` names. Feast writes rows that are newer than its last materialisation; changed rows with an
old time are found by comparing published ids with the offline store, and then all rows are written again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from rec_ray.candidate_store.erasure import Erased
from rec_ray.candidate_store.manifest import ITEM_FOLDER, USER_FOLDER
from rec_ray.candidate_store.parts import PartSlice, StoredCandidates, read_slice
from rec_ray.config import FeastSettings, PublishSettings
from rec_ray.errors import FeatureStoreError
from rec_ray.feature_store.api import FeatureStore
from rec_ray.feature_store.online_features import (
    OnlineState,
    OnlineView,
    compare_online,
    delete_forgotten_rows,
    find_online_views,
    materialize_view,
)
from rec_ray.logs import LOGGER
from rec_ray.schema import ITEM_ID, USER_ID
from rec_ray.storage.object_store import Storage

COMPARED = 10_000
"""Published ids of a side that are compared, evenly from all parts of the candidates."""


def wanted_views(store: FeatureStore, feast: FeastSettings, settings: PublishSettings) -> list[OnlineView]:
    """Return the views that `publish.materialize` names.

    Raises:
        ConfigError: as `find_online_views`.
    """
    if not settings.materialize:
        return []
    return find_online_views(store, feast, None if settings.materialize == "auto" else settings.materialize)


def materialize_features(
    store: FeatureStore,
    storage: Storage,
    candidates: StoredCandidates,
    feast: FeastSettings,
    settings: PublishSettings,
    check: Callable[[], None] = lambda: None,
    erased: Erased | None = None,
) -> dict[str, tuple[int, int]]:
    """Materialise the wanted views; return view -> published ids that were compared, and those with a row.

    check: called between views; raises if this process may not continue. erased: forgotten users and items, whose rows
    are deleted again, because their owner may not have removed them from the source yet.

    Raises:
        ConfigError: `publish.materialize` names a view that cannot be materialised.
        FeatureStoreError: a store fails, or no published id has a row afterwards.
    """
    found: dict[str, tuple[int, int]] = {}
    ids: dict[str, list[str]] = {}
    for view in wanted_views(store, feast, settings):
        side = view.side.side
        if side not in ids:
            ids[side] = _published_ids(storage, candidates, side)
        now = datetime.now(UTC)
        materialize_view(store, view, now)
        state = compare_online(store, view, ids[side], now)
        if state.differing:
            LOGGER.info(
                "view %s: %s of %s ids have other values online, as their rows changed without a newer time; all rows "
                "are written again",
                view.name,
                f"{state.differing:,}",
                f"{state.ids:,}",
            )
            materialize_view(store, view, now, again=True)
            state = compare_online(store, view, ids[side], now)
        forgotten = delete_forgotten_rows(store, view, erased or Erased(), feast.join_rows)
        if forgotten:
            LOGGER.info("view %s: the rows of %s forgotten ids are deleted again", view.name, f"{forgotten:,}")
        _report(view, state)
        found[view.name] = (state.ids, state.there)
        check()
    return found


def _report(view: OnlineView, state: OnlineState) -> None:
    """Log the rows of a view.

    Raises:
        FeatureStoreError: there are none although the offline store has some.
    """
    if state.differing and not state.there:
        raise FeatureStoreError(
            f"view {view.name!r} has no row of {state.ids:,} published ids in the online store after its "
            "materialisation; do its online store and its registry belong together? Nothing was pushed"
        )
    LOGGER.info("view %s is materialised: %s of %s published ids have a row online", view.name, state.there, state.ids)
    if state.differing:
        LOGGER.warning(
            "view %s: %s of %s published ids have other values online than offline; does another job write this view, "
            "or does the online store keep the first of several rows of one time (Redis)?",
            view.name,
            f"{state.differing:,}",
            f"{state.ids:,}",
        )


def _published_ids(storage: Storage, candidates: StoredCandidates, side: str) -> list[str]:
    """Return at most `COMPARED` ids of the candidates: the first of each part."""
    folder, column = (ITEM_FOLDER, ITEM_ID) if side == "item" else (USER_FOLDER, USER_ID)
    paths = candidates.paths(storage, folder)
    each = -(-COMPARED // max(1, len(paths)))
    tables: Sequence[list[str]] = [
        batch[column].to_pylist() for path in paths for batch in read_slice(storage, PartSlice(path, 0, each), each)
    ]
    return [one for ids in tables for one in ids][:COMPARED]
