"""Estimates of a run before it starts: sizes, steps, memory, time, and the views that it would publish to.

Input: settings, Feast's registry and the footers of the files. Output: a `Plan` with estimates from rates measured on
two cores. Planning starts no Ray, reads rows only for `features: auto`, and writes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rec_ray.config import Settings
from rec_ray.data.feature_sample import late_views
from rec_ray.data.source_times import span_in_footers
from rec_ray.distributed.machine import PROCESS_BYTES
from rec_ray.feature_store.api import FeatureStore
from rec_ray.feature_store.definitions import find_side
from rec_ray.feature_store.offline_source import SourceSlice, entity_sources, event_source, slice_source
from rec_ray.feature_store.push_targets import is_published
from rec_ray.feature_store.registry import read_registry
from rec_ray.feature_store.search_targets import find_search_targets, list_unfed_views
from rec_ray.preflight import complete_settings, find_faults, raise_faults
from rec_ray.publishing.materialize_features import wanted_views
from rec_ray.publishing.push import SINGLE_WRITERS, find_push_targets
from rec_ray.retrieval.learning.attempts import SMALL_EVENTS
from rec_ray.runs.context import open_feature_store
from rec_ray.runs.stores import open_object_store, open_version_database

START_SECONDS = 15.0
TRAIN_START_SECONDS = 20.0
"""Seconds to start Ray with its processes, and Ray Train with its data."""
LOADED_ROWS, ENCODED_ROWS, LEARNED_EVENTS, RANKED_USERS = 40_000.0, 80_000.0, 12_000.0, 1_500.0
"""Rates per second and core: joined rows, encoded rows, training events, evaluated users."""
SCORES_A_SECOND = 2e8
"""Scores of users and items with 64 dimensions, per second and core, including selection."""
PUSHED_ROWS = 800.0
"""Rows pushed to Feast, per second and process."""
ROW_BYTES, FIELD_BYTES, EVENT_BYTES = 150, 40, 60
"""Sizes in bytes of a row of the interactions without features, a feature of it, and an encoded event."""


@dataclass(frozen=True)
class PlannedStep:
    """Step with its estimates; bytes are the sum over all processes of the step."""

    name: str
    does: str
    seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class Plan:
    """Estimates of a run.

    rows: label -> number of rows, or None if only reading could count them; a user or item counts once per source row.
    publishes: push source or materialised view -> what would be written. notes: limits of the estimates.
    """

    version: str
    cores: int
    rows: dict[str, int | None]
    steps: list[PlannedStep]
    disk_bytes: int
    publishes: dict[str, str]
    where: dict[str, str]
    notes: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Seconds of all steps together."""
        return sum(step.seconds for step in self.steps)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the step that needs most."""
        return max(step.memory_bytes for step in self.steps)


def plan_run(settings: Settings) -> Plan:
    """Estimate the cost of `rec-ray run`.

    Raises:
        ConfigError, SchemaError: a service, a push source or a field contradicts the settings.
        UnavailableError: the registry, a file or the database cannot be read.
    """
    store = open_feature_store(settings)
    settings = complete_settings(store, settings)
    raise_faults(find_faults(store, settings))
    feast, registry = settings.feast, read_registry(store)
    sources = {
        "interactions": [event_source(registry, feast, settings.features)],
        "users": entity_sources(find_side(registry, feast, "user")),
        "items": entity_sources(find_side(registry, feast, "item")),
    }
    slices = {
        name: [part for source in found for part in slice_source(store, source, feast.join_rows)]
        for name, found in sources.items()
    }
    rows = {name: _rows(found) for name, found in slices.items()}
    notes = [
        f"the {name} are in a source that must be read to be counted: {_or_guess(count):,} rows are assumed"
        for name, count in rows.items()
        if count is None
    ]
    notes += _late_views(settings, slices)
    if settings.side_tables.url:
        notes.append("the rows of the side tables are not counted")
    cores = settings.ray.num_cpus or os.cpu_count() or 1
    if settings.ray.address:
        notes.append(f"the cluster at {settings.ray.address} is not contacted: estimates are for {cores} cores")
    events, users, items = (_or_guess(count) for count in rows.values())
    database = open_version_database(settings)
    numbers = [int(row.version) for row in database.list_versions() if row.version.isdecimal()]
    stored = [int(name) for name in open_object_store(settings).folders("two-tower") if name.isdecimal()]
    publishes = _publishes(store, settings)
    steps = _steps(settings, events, users, items, cores, _writers(store, cores))
    if not publishes:
        steps = [step for step in steps if step.name != "update_features"]
        notes.append("nothing is published: no view takes the lists; `rec-ray feast-views --apply` adds views")
    lists = users * (settings.candidates.k * 16 + settings.model.embedding_size * 4)
    return Plan(
        version=str(max([*numbers, *stored], default=0) + 1),
        cores=cores,
        rows=rows,
        steps=steps,
        disk_bytes=events * EVENT_BYTES + lists + 4 * items * settings.model.embedding_size * 4,
        publishes=publishes,
        where={"store": open_object_store(settings).uri(), "versions": database.url, "feature repository": feast.repo},
        notes=[
            *notes,
            *list_unfed_views(store, settings.search),
            "the version may be a later one, because other runs may have reserved numbers",
        ],
    )


def _late_views(settings: Settings, slices: Mapping[str, Sequence[SourceSlice]]) -> list[str]:
    """Return sentences on views whose rows begin after the middle of the events, according to file footers."""
    events, features = span_in_footers(slices["interactions"]), settings.features
    if events is None:
        return []
    dated: list[SourceSlice] = []
    if features.user and features.user_history == "as_of_event":
        dated += slices["users"]
    if features.item and features.item_history == "as_of_event":
        dated += slices["items"]
    remedy = "date its rows when they became true, or set features.user_history or item_history: as_of_now"
    return [f"{said}: {remedy}" for said in late_views(dated, events.middle)]


def _rows(slices: Sequence[SourceSlice]) -> int | None:
    counts = [part.rows for part in slices]
    return None if None in counts else sum(count or 0 for count in counts)


def _or_guess(count: int | None) -> int:
    return 1_000_000 if count is None else count


def _writers(store: FeatureStore, cores: int) -> int:
    return 1 if str(store.config.online_store.type) in SINGLE_WRITERS else cores


def _steps(settings: Settings, events: int, users: int, items: int, cores: int, writers: int) -> list[PlannedStep]:
    model, train = settings.model, settings.train
    size, k = model.embedding_size, settings.candidates.k
    fields = len(settings.features.user)
    block = min(events + 3 * users, settings.feast.join_rows) * (ROW_BYTES + fields * FIELD_BYTES)
    whole = (events + 3 * users) * (ROW_BYTES + fields * FIELD_BYTES)
    processes = cores * PROCESS_BYTES
    passes = train.passes(-(-events // train.batch_size))
    again = {"continue": train.refit_epochs, "full": passes, "off": 0}[train.refit]
    # With history auto, small data are trained with both histories.
    tried = 2 if model.history == "auto" and events <= SMALL_EVENTS else 1
    epochs = tried * passes + again * (2 if train.refit_check else 1)
    workers = train.least_workers * train.cpus_per_worker
    table = items * size * 4
    # Weights, second moments and a copy of the best epoch; scores of a batch with their gradients.
    towers = 3 * table + 3 * train.batch_size * (train.batch_size + train.uniform_negatives) * 4
    cache = min(events * EVENT_BYTES, train.cache_bytes * train.most_workers)
    scoring = table + cores * (table + settings.candidates.batch_size * items // 50 * 4)
    products = users * items * size / 64
    pushed = items + 2 * users
    return [
        PlannedStep("start", "start or join Ray, open Feast", START_SECONDS, processes),
        PlannedStep(
            "load_features",
            f"join {events:,} interactions with {fields} user features, point in time",
            (events + 3 * users) / LOADED_ROWS / cores,
            processes + 3 * cores * block + whole,
        ),
        PlannedStep(
            "training_data",
            f"encode the timelines of up to {users:,} users",
            (events + 3 * users) / ENCODED_ROWS / cores,
            processes + 2 * cores * block + whole,
        ),
        PlannedStep(
            "train",
            f"{model.history} history, {size} dimensions, up to {epochs} passes on {train.least_workers} worker(s)",
            TRAIN_START_SECONDS + epochs * events / LEARNED_EVENTS / workers,
            train.most_workers * (PROCESS_BYTES + towers) + processes + cache,
        ),
        PlannedStep(
            "evaluate",
            f"rank {items:,} items for the users with held-out events, beside five counting baselines",
            users / RANKED_USERS / cores + products / SCORES_A_SECOND / cores,
            processes + scoring,
        ),
        PlannedStep("model_store", "store the model under its version", 1.0, PROCESS_BYTES + 2 * table),
        PlannedStep(
            "candidates",
            f"the best {k} of {items:,} items for each of {users:,} users",
            users / RANKED_USERS / cores + products / SCORES_A_SECOND / cores,
            processes + scoring,
        ),
        PlannedStep(
            "update_features",
            f"push {pushed:,} rows to Feast by {writers} writer(s), then make the version live",
            pushed / PUSHED_ROWS / writers,
            processes,
        ),
    ]


def _publishes(store: FeatureStore, settings: Settings) -> dict[str, str]:
    if not is_published(store, settings.publish):
        return {}
    targets = [
        *find_push_targets(store, settings.publish).values(),
        *find_search_targets(store, settings.search).values(),
    ]
    pushed = {target.source: f"{target.view}: {', '.join(target.fields.values())}" for target in targets}
    views = wanted_views(store, settings.feast, settings.publish)
    return pushed | {view.name: f"{', '.join(view.fields)}, materialised by Feast" for view in views}
