"""Checks of `rec-ray doctor`: find faults that would stop a run, with one line per store or service.

Input: settings. Each store or service is really used once (an object written, a canary row pushed and read, a task
run). Output: a list of `Check`, whose messages name the remedy. The checks repair nothing and leave nothing visible to
readers of recommendations.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import ray

from rec_ray.candidate_store.manifest import RECOMMENDATION_FOLDER
from rec_ray.cli.plan import plan_run
from rec_ray.cli.reader_checks import check_online_features, check_user_encoder_objects
from rec_ray.config import Settings
from rec_ray.config.decided_features import without_decisions
from rec_ray.data.event_sample import examine_events
from rec_ray.data.feature_sample import examine_features
from rec_ray.data.side_tables import find_side_tables
from rec_ray.distributed.runtime import check_gpus, is_local, open_ray
from rec_ray.errors import ConfigError, DataError, FeatureStoreError, RecRayError, UnavailableError, list_names
from rec_ray.feature_store.api import FeatureStore, PushMode
from rec_ray.feature_store.definitions import find_side
from rec_ray.feature_store.offline_source import entity_sources, event_source, read_slice, slice_source
from rec_ray.feature_store.pgvector import missing_vector_indexes
from rec_ray.feature_store.point_in_time import portable_config
from rec_ray.feature_store.push_targets import PushTarget, is_published, push_frame, read_online
from rec_ray.feature_store.registry import read_registry
from rec_ray.feature_store.search_targets import check_search_targets, find_search_targets, list_unfed_views
from rec_ray.preflight import DEFINITIONS, SOURCES, complete_settings, find_faults, raise_faults
from rec_ray.publishing.push import check_push_targets, find_push_targets
from rec_ray.retrieval.search.byte_products import fastest_kernel
from rec_ray.runs.context import open_feature_store
from rec_ray.runs.stores import open_object_store, open_version_database
from rec_ray.schema import ITEM_IDS, SCORES, USER_ID
from rec_ray.search_views.vectors import search_dimensions

CANARY = "__rec_ray_canary__"
CANARY_NUMBER = -(2**53)
"""User id of the canary row, for text ids and for integer ids; no shop has this id."""
UNPUBLISHED = (
    "no view takes recommendations, so a run stores its lists and publishes nothing; `rec-ray feast-views --apply` "
    "adds views"
)
PACKAGES = ("ray", "rec_ray", "feast", "torch", "pyarrow")


@dataclass(frozen=True)
class Check:
    """Result for one store or service: whether it works, and the findings, with a remedy for a fault."""

    name: str
    ok: bool
    said: str
    exit_code: int
    seconds: float


def examine(settings: Settings) -> list[Check]:
    """Use each store and service once; a failed check does not prevent the others."""
    checks = [
        _try("object store", lambda: _object_store(settings)),
        _try("version database", lambda: _database(settings)),
        _try("side tables", lambda: _side_tables(settings)),
    ]
    opened: list[FeatureStore] = []

    def with_feast(check: Callable[[FeatureStore], str]) -> str:
        if not opened:
            raise UnavailableError("not checked, because the feature registry cannot be read")
        return check(opened[0])

    def registry() -> str:
        nonlocal settings
        store = open_feature_store(settings)
        read_registry(store)
        opened.append(store)
        given, settings = settings, without_decisions(settings)
        settings = complete_settings(store, given)
        return _registry(store, settings)

    checks += [
        _try("feature registry", registry),
        _try("offline store", lambda: with_feast(lambda store: _offline(store, settings))),
        _try("push sources", lambda: with_feast(lambda store: _push_sources(store, settings))),
        _try("online store", lambda: with_feast(lambda store: _canary(store, settings))),
        _try("online features", lambda: with_feast(lambda store: _online_features(store, settings))),
        _try("user encoder", lambda: _user_encoder(settings)),
        _try("Ray", lambda: _ray(settings)),
    ]
    return checks


def exit_code_of(checks: list[Check]) -> int:
    """Return 0 without a fault, 2 if the settings or the data must be changed, else 3: retry when the service is up."""
    codes = {check.exit_code for check in checks if not check.ok}
    return 0 if not codes else 3 if codes == {UnavailableError.exit_code} else ConfigError.exit_code


def _try(name: str, check: Callable[[], str]) -> Check:
    started = time.perf_counter()
    try:
        ok, said, code = True, check(), 0
    except RecRayError as error:
        wrong = isinstance(error, (ConfigError, DataError))
        ok, said, code = False, str(error), ConfigError.exit_code if wrong else UnavailableError.exit_code
    return Check(name, ok, " ".join(said.split()), code, round(time.perf_counter() - started, 2))


def _object_store(settings: Settings) -> str:
    storage = open_object_store(settings)
    storage.check_writable()
    return f"wrote, read and deleted an object in {storage.uri()}"


def _database(settings: Settings) -> str:
    database = open_version_database(settings)
    migrated, live = database.is_migrated(), database.live()
    tables = "is migrated" if migrated else "gets its tables from the first run"
    row, own = (database.get(live) if live else None), open_object_store(settings).uri()
    shared = ""
    if row is not None and row.artifact_uri and not row.artifact_uri.startswith(own):
        shared = (
            f"; it is stored at {row.artifact_uri}, not below {own}: if another project shares this database, set "
            "database.schema_name for one of them"
        )
    return (
        f"{database.url} is reachable and {tables}; live is {f'version {live}' if live else 'no version yet'}{shared}"
    )


def _side_tables(settings: Settings) -> str:
    found = find_side_tables(settings.side_tables, settings.features)
    names = [table.name for table in (found.users, found.interactions) if table]
    if settings.side_tables.url is None:
        return "none are set"
    return f"{list_names(names)} in {settings.side_tables.url}" if names else "none exists: only Feast's data are used"


def _registry(store: FeatureStore, settings: Settings) -> str:
    raise_faults(find_faults(store, settings, [DEFINITIONS]))
    declared = len(settings.features.user) + len(settings.features.item)
    return f"project {store.project} has the views of events, users and items with all {declared} declared features"


def _offline(store: FeatureStore, settings: Settings) -> str:
    feast, registry = settings.feast, read_registry(store)
    sources = [
        event_source(registry, feast, settings.features),
        *entity_sources(find_side(registry, feast, "user")),
        *entity_sources(find_side(registry, feast, "item")),
    ]
    faults = find_faults(store, settings, [SOURCES])
    for source in sources:
        try:
            slices = slice_source(store, source, feast.join_rows)
            if slices and slices[-1].path is None:
                # Without a file footer the last time is unknown: read the newest period.
                read_slice(portable_config(store), slices[-1])
        except RecRayError as error:
            faults += [error] if str(error) not in map(str, faults) else []
    raise_faults(faults)
    # Suspicious events do not stop a run; the notes name the settings.
    read, notes = examine_events(store, feast, settings.features)
    notes += examine_features(store, feast, settings.features, settings.evaluation)
    said = f"{len(sources)} sources are readable and have the columns needed; {read:,} events looked at"
    return "; ".join([said, *notes])


def _targets(store: FeatureStore, settings: Settings) -> list[PushTarget]:
    model = settings.model
    towers = check_push_targets(store, settings.publish, model.similarity, model.embedding_size)
    searched = find_search_targets(store, settings.search)
    check_search_targets(store, settings.search, search_dimensions(settings.search))
    return [*towers.values(), *searched.values()]


def _push_sources(store: FeatureStore, settings: Settings) -> str:
    if not is_published(store, settings.publish):
        return UNPUBLISHED
    targets = _targets(store, settings)
    said = [f"{target.source} ({', '.join(target.fields.values())})" for target in targets]
    slow = missing_vector_indexes(store, targets)
    hint = f"; no index over the vectors of {list_names(slow)}: `rec-ray vector-index` creates it" if slow else ""
    unfed = "".join(f"; {note}" for note in list_unfed_views(store, settings.search))
    return f"found {'; '.join(said)}{hint}{unfed}"


def _canary(store: FeatureStore, settings: Settings) -> str:
    """Push a list for a user id that no shop has, read it back, and leave an empty list.

    Only the view of recommendations is used, because it is read by user id, while searches would find a vector.
    """
    if not is_published(store, settings.publish):
        return "not used, as nothing is published"
    target = find_push_targets(store, settings.publish)[RECOMMENDATION_FOLDER]
    user = str(CANARY_NUMBER) if _is_number(target, target.key) else CANARY
    item = str(uuid.uuid4().int % 2**31) if _is_number(target, target.fields[ITEM_IDS]) else uuid.uuid4().hex
    now = datetime.now(UTC)
    _push_and_read(store, target, user, [item], now)
    _push_and_read(store, target, user, [], now + timedelta(seconds=1))
    return f"a canary row went through {target.view} of the {store.config.online_store.type} store and back"


def _online_features(store: FeatureStore, settings: Settings) -> str:
    if not is_published(store, settings.publish):
        return "not used, as nothing is published"
    return check_online_features(store, settings)


def _user_encoder(settings: Settings) -> str:
    try:
        live = open_version_database(settings).live()
        return check_user_encoder_objects(open_object_store(settings), settings, live)
    except UnavailableError:
        return "not checked, because the object store or the version database does not respond"


def _is_number(target: PushTarget, name: str) -> bool:
    kind = target.types.get(name, pa.string())
    return bool(pa.types.is_integer(kind.value_type if pa.types.is_list(kind) else kind))


def _push_and_read(store: FeatureStore, target: PushTarget, user: str, items: list[str], when: datetime) -> None:
    row = {
        USER_ID: pa.array([user]),
        ITEM_IDS: pa.array([items], pa.list_(pa.string())),
        SCORES: pa.array([[0.0] * len(items)], pa.list_(pa.float32())),
    }
    try:
        store.push(target.source, push_frame(pa.table(row), target, "doctor", when), to=PushMode.ONLINE)
    except Exception as error:
        raise FeatureStoreError(
            f"a row could not be pushed to {target.source!r}: {type(error).__name__}: {error}; is the online store of "
            "feature_store.yaml up, and was `feast apply` run?"
        ) from error
    answer = read_online(store, target, [user])[target.fields[ITEM_IDS]][0]
    if [str(found) for found in answer or []] != items:
        raise FeatureStoreError(
            f"the online store returned {answer!r} after {items!r} was pushed to {target.source!r}: a store that keeps "
            "the newest row has one from the future; check the clocks of this machine and of other publishers"
        )


def _ray(settings: Settings) -> str:
    ours = open_ray(settings.ray)
    try:
        here = _versions()
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        if not nodes:
            raise UnavailableError("Ray has no node with a CPU; is the cluster still starting?")
        pinned = [f"node:{node['NodeManagerAddress']}" for node in nodes]
        asked = [_versions_there.options(num_cpus=0, resources={name: 0.001}).remote() for name in pinned]
        ready, late = ray.wait(asked, num_returns=len(asked), timeout=120)
        if late:
            raise UnavailableError(f"{len(late)} of {len(asked)} Ray nodes ran no task in 120 s; is the cluster full?")
        kernels = set()
        for node, (there, kernel) in zip(pinned, ray.get(asked), strict=True):
            kernels.add(kernel)
            differing = [f"{name} {there[name]} instead of {here[name]}" for name in here if here[name] != there[name]]
            if differing:
                raise ConfigError(f"Ray's {node} has {', '.join(differing)}; use the same image everywhere")
        del ready
        return f"{_room(settings, len(nodes))}; exact search by {', '.join(sorted(kernels))}"
    finally:
        if ours:
            ray.shutdown()


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


@ray.remote
def _versions_there() -> tuple[dict[str, str], str]:
    """Return the versions and the kernel of exact searches of a node."""
    return _versions(), fastest_kernel()


def _room(settings: Settings, nodes: int) -> str:
    """Compare the needs of the settings and the plan with the resources of Ray and the disk of the store."""
    check_gpus(settings, can_come=not is_local(settings.ray))
    resources = ray.available_resources()
    memory = int(resources.get("memory", 0) + resources.get("object_store_memory", 0))
    said = f"{nodes} node(s) with {resources.get('CPU', 0):.0f} CPUs run tasks with the same versions"
    try:
        plan = plan_run(settings)
    except RecRayError:
        return f"{said}; memory and disk were not compared with a plan, see the lines above"
    if memory < plan.memory_bytes:
        raise ConfigError(
            f"a run needs about {_gb(plan.memory_bytes)} of memory at a time and Ray has {_gb(memory)}; lower "
            "feast.join_rows or ray.num_cpus, or use a larger machine"
        )
    storage = open_object_store(settings)
    if storage.is_folder:
        root = Path(storage.root)
        free = shutil.disk_usage(next(folder for folder in [root, *root.parents] if folder.exists())).free
        if free < plan.disk_bytes:
            raise UnavailableError(
                f"a run writes about {_gb(plan.disk_bytes)} and the disk of {root} has {_gb(free)} free; make room "
                "or run `rec-ray versions prune`"
            )
        said += f"; disk {_gb(free)} for about {_gb(plan.disk_bytes)}"
    return f"{said}; memory {_gb(memory)} for about {_gb(plan.memory_bytes)}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
