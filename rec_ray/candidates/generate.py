"""Candidates step: vectors of all items and users, and the best k items of every user, from a model and encoded tables.

The catalogue and the timelines stream through `map_batches`. The item vectors and the evaluated filters are shared by
all processes of a node, and a manifest, written last, lists the parts of the successful tasks. The module does not use
Feast or the version database.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
import ray
import ray.data

from rec_ray.candidate_store.manifest import (
    ITEM_FOLDER,
    MANIFEST,
    RECOMMENDATION_FOLDER,
    SIMILAR_FOLDER,
    USER_FOLDER,
    CandidatesManifest,
    Part,
    new_generation,
    read_manifest,
    read_parts,
    write_manifest,
)
from rec_ray.candidate_store.writer import PartsSink
from rec_ray.candidates.batch_recommender import (
    INDICES,
    POPULARITY,
    CandidateContext,
    add_history,
    embed_items,
    list_similar_items,
    measure_recall,
    name_items,
    recommend_items,
)
from rec_ray.candidates.item_shards import ItemShards, make_shards
from rec_ray.candidates.recorded_timelines import record_timelines
from rec_ray.config import CandidateSettings
from rec_ray.contracts import Candidates, TrainingData
from rec_ray.distributed.parquet_source import read_rows
from rec_ray.errors import DataError, GateError, list_names
from rec_ray.logs import LOGGER
from rec_ray.retrieval.features.batch import FeatureShape
from rec_ray.retrieval.features.columns import index_of
from rec_ray.retrieval.features.dislikes import with_disliked
from rec_ray.retrieval.features.preprocessing import Preprocessor
from rec_ray.retrieval.features.timelines import Timelines
from rec_ray.retrieval.lists.item_filters import ItemFilters, evaluate_item_filters, raw_columns
from rec_ray.retrieval.lists.popularity import SegmentPopularity, add_counts, count_by_segment
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.retrieval.profiles.list_profile import LISTS, profile_lists
from rec_ray.runs.progress import show_progress
from rec_ray.schema import (
    EMPTIED_BY,
    FIRST_SEEN,
    ITEM_EMBEDDINGS,
    ITEM_ID,
    ITEM_IDS,
    METHOD,
    RAW_ITEM,
    RAW_NOW,
    RECOMMENDATIONS,
    SIMILAR_IDS,
    SIMILAR_ITEMS,
    USER_EMBEDDINGS,
)
from rec_ray.storage.object_store import Storage

Array = np.ndarray[Any, Any]

Parts = dict[str, list[Part]]
"""Folder -> its parts, as in a manifest."""

GPU_ROWS = 16_384
"""Rows per task on a GPU."""


def generate_candidates(
    data: TrainingData,
    bundle: TwoTowerBundle,
    settings: CandidateSettings,
    storage: Storage,
    *,
    version: str,
    prefix: str,
    items_of: str | None = None,
    manifest_name: str = MANIFEST,
) -> Candidates:
    """Embed every item and user and write each user's `k` best items, best first.

    prefix: key below which `item_embeddings/`, `user_embeddings/`, `recommendations/` and the manifest are written, and
    `similar_items/` if the settings select it. A list has fewer than k items only if fewer items are eligible.
    items_of: key of complete candidates whose item vectors are used; then none are written, and users without any known
    data are left out, because their lists depend on the events of all users.
    manifest_name: `MANIFEST`, or `PENDING` if `commit_candidates` later makes them the candidates of the version.

    The parts go to a folder of their own and the manifest is written last, so earlier candidates under the same prefix
    stay complete until then, and their parts stay until `rec-ray versions prune`.

    Raises:
        DataError: the catalogue is empty.
        GateError: approximate lists lack too many of the best items.
    """
    generation = new_generation()
    model = ray.put(bundle.without_evaluated())
    items = None
    if items_of is None:
        items = _embed_catalogue(data, model, settings, storage)
        blocks, item_count = items.to_arrow_refs(), items.count()
    else:
        stored, rows = _stored_items.remote(storage, items_of, [model])
        blocks, item_count = [stored], ray.get(rows)
    if not item_count:
        raise DataError("the catalogue is empty: there is nothing to recommend")
    shards = make_shards(
        blocks,
        item_count,
        bundle.embedding_size,
        shard_items=settings.shard_items,
        approximate=settings.engine != "exact",
        probes=settings.probes,
        device=settings.device,
    )
    facts: dict[str, Any] = {"engine": settings.engine, "shards": len(shards.refs)}
    filters = _filters(data, bundle.preprocessor, settings, storage, shards, None if items else blocks[0])
    popularity = _popularity(data, bundle.preprocessor.users.shape, settings, storage) if items else None
    shared = CandidateContext(model, shards, filters, popularity, settings, data.split_times.as_of)
    if settings.engine != "exact":
        facts["recall"] = check_recall(data, settings, storage, shared)
    item_sink = PartsSink(storage, prefix, {ITEM_FOLDER: ITEM_EMBEDDINGS}, generation=generation)
    parts: Parts = {}
    with _written(item_sink, blocks if items is not None else []):
        if items is not None and settings.similar_items:
            parts |= _write_similar_items(items, shared, storage, prefix, generation)
        user_sink = _write_users(data, shared, storage, prefix, generation)
    parts |= user_sink.parts | (item_sink.parts if items is not None else {})
    parts |= record_timelines(data, storage, prefix, generation)
    facts |= _facts(user_sink, settings.k)
    if items is not None:
        storage.write_bytes(f"{prefix}/{LISTS}", user_sink.measured.finish(item_count).to_json())
    manifest = CandidatesManifest(
        version=version,
        parts={folder: tuple(each) for folder, each in parts.items()},
        as_of=data.split_times.as_of,
        k=settings.k,
        items=item_count,
        users=sum(part.rows for part in parts[USER_FOLDER]),
        similarity=bundle.similarity,
        embedding_size=bundle.embedding_size,
        is_increment=items is None,
        generation=generation,
        facts=facts,
    )
    write_manifest(storage, prefix, manifest, manifest_name)
    return Candidates(version, prefix, manifest.items, manifest.users, settings.k, facts)


@contextlib.contextmanager
def _written(sink: PartsSink, blocks: list[ray.ObjectRef]) -> Iterator[None]:
    """Submit the writers first, so that they are scheduled before other tasks; collect their parts on exit.

    No writer runs after the exit, also when the context failed.
    """
    written = [_write_block.remote(sink, place, block) for place, block in enumerate(blocks)]
    try:
        yield
    finally:
        if written:
            ray.wait(written, num_returns=len(written), fetch_local=False)
    sink.collect(ray.get(written))


@ray.remote(num_cpus=1)
def _write_block(sink: PartsSink, place: int, block: pa.Table) -> dict[str, Any]:
    return sink.write_blocks(place, [block])


def _write_similar_items(
    items: ray.data.Dataset, shared: CandidateContext, storage: Storage, prefix: str, generation: str
) -> Parts:
    named = functools.partial(name_items, column=SIMILAR_IDS, items=shared.items)
    sink = PartsSink(storage, prefix, {SIMILAR_FOLDER: SIMILAR_ITEMS}, prepare=named, generation=generation)
    shared.items.wait()
    items.map_batches(
        list_similar_items,
        fn_kwargs={"shared": shared},
        batch_size=shared.settings.batch_size,
        batch_format="pyarrow",
        num_gpus=shared.settings.gpus,
    ).write_datasink(sink)
    return sink.parts


def _write_users(
    data: TrainingData, shared: CandidateContext, storage: Storage, prefix: str, generation: str
) -> PartsSink:
    """Write the vector and the list of each user; return the sink with the parts and counts."""
    folders = {USER_FOLDER: USER_EMBEDDINGS, RECOMMENDATION_FOLDER: RECOMMENDATIONS}
    named = functools.partial(name_items, column=ITEM_IDS, items=shared.items)
    sink = PartsSink(
        storage,
        prefix,
        folders,
        counted=[METHOD, EMPTIED_BY],
        lists=INDICES,
        prepare=named,
        measure=functools.partial(profile_lists, column=INDICES, k=shared.settings.k, name_items=named),
        generation=generation,
    )
    timelines = read_rows(storage, data.timelines)
    shared.items.wait()
    with show_progress("candidates: users", data.users) as progress:
        timelines.map_batches(
            recommend_items,
            fn_kwargs={"shared": shared, "progress": progress},
            batch_size=_batch_rows(shared.settings),
            batch_format="pyarrow",
            num_gpus=shared.settings.gpus,
        ).write_datasink(sink)
    return sink


def _batch_rows(settings: CandidateSettings) -> int | None:
    """Return the batch size of `map_batches`: None passes complete blocks, so Ray fuses tasks; GPUs need a number."""
    return GPU_ROWS if settings.use_gpu else None


def _facts(sink: PartsSink, k: int) -> dict[str, Any]:
    """Return the counts of the written lists, and log the filters that emptied lists."""
    emptied = {str(rule): count for (column, rule), count in sink.counts.items() if column == EMPTIED_BY}
    for rule, count in emptied.items():
        LOGGER.warning("candidates.filters: %s leaves no item at all for %s users", rule, f"{count:,}")
    facts: dict[str, Any] = {"short_lists": sink.short_lists(k), "popularity_lists": sink.counts[METHOD, POPULARITY]}
    without = {"users_without_items": sum(emptied.values())} if emptied else {}
    return facts | {"listed_items": sink.listed_items} | without


def _embed_catalogue(
    data: TrainingData, bundle: ray.ObjectRef, settings: CandidateSettings, storage: Storage
) -> ray.data.Dataset:
    return (
        read_rows(storage, data.catalogue_now)
        .map_batches(
            embed_items,
            fn_kwargs={"bundle": bundle, "device": settings.device, "precision": settings.precision},
            batch_size=_batch_rows(settings),
            batch_format="pyarrow",
            num_gpus=settings.gpus,
        )
        .materialize()
    )


@ray.remote(num_cpus=1, num_returns=2)
def _stored_items(storage: Storage, prefix: str, bundle: list[ray.ObjectRef]) -> tuple[pa.Table, int]:
    """Return the items of complete candidates, as `embed_items` returns them, and their number.

    Their index is the order of their ids.

    bundle: its reference in a list, because Ray replaces a bare reference argument by its value.
    """
    table = read_parts(storage, prefix, read_manifest(storage, prefix), ITEM_FOLDER).sort_by(ITEM_ID)
    table = table.append_column("item_index", pa.array(np.arange(1, table.num_rows + 1), pa.int32()))
    return add_history(table, bundle[0]), table.num_rows


def check_recall(data: TrainingData, settings: CandidateSettings, storage: Storage, shared: CandidateContext) -> float:
    """Return the mean recall at k of the approximate lists of a sample of users, against exact search.

    Raises:
        GateError: it is below `candidates.recall_floor`.
    """
    users = read_rows(storage, data.timelines)
    share = min(1.0, 2 * settings.recall_users / max(1, data.users))
    sample = users if share == 1.0 else users.random_sample(share, seed=0)
    measured = sample.limit(settings.recall_users).map_batches(
        measure_recall,
        fn_kwargs={"shared": shared},
        batch_size=settings.batch_size,
        batch_format="pyarrow",
        num_gpus=settings.gpus,
    )
    found = measured.mean("recall")
    recall = 1.0 if found is None else round(float(found), 4)
    LOGGER.info("%s finds %.4f of the exact lists of %d users", settings.engine, recall, settings.recall_users)
    if recall < settings.recall_floor:
        raise GateError(
            f"{settings.engine} with candidates.probes {settings.probes} finds {recall:.4f} of the exact lists of "
            f"{settings.k} items, below candidates.recall_floor {settings.recall_floor}; raise candidates.probes, or "
            "set candidates.engine: exact"
        )
    return recall


def _filters(
    data: TrainingData,
    preprocessor: Preprocessor,
    settings: CandidateSettings,
    storage: Storage,
    shards: ItemShards,
    stored: ray.ObjectRef | None,
) -> ray.ObjectRef:
    """Return a reference to the filters evaluated on all items, and log the items that they remove for all users.

    stored: reference to the items of older candidates, if those are searched.
    """
    if not settings.changes_lists:
        return ray.put(ItemFilters(shards.item_count))
    now = data.split_times.as_of
    filters, said = _item_filters.remote(data.catalogue_now, storage, settings, preprocessor, stored, now)
    left_out, notes = ray.get(said)
    for name, count in left_out.items():
        LOGGER.info("candidates.filters.%s leaves out %s items for all users", name, f"{count:,}")
    types = set(preprocessor.event_types)
    unknown = [name for name in settings.filters.seen_types if types.isdisjoint(with_disliked([name]))]
    for note in [*notes, *([f"seen_types: there was no event of the type {list_names(unknown)}"] if unknown else [])]:
        LOGGER.warning("candidates.filters: %s", note)
    return filters


@ray.remote(num_cpus=1, num_returns=2)
def _item_filters(
    catalogue: str,
    storage: Storage,
    settings: CandidateSettings,
    preprocessor: Preprocessor,
    stored: pa.Table | None,
    now: datetime,
) -> tuple[ItemFilters, tuple[dict[str, int], tuple[str, ...]]]:
    """Evaluate the filters on all items; return them, the number of items that each rule removes, and notes."""
    wanted = [*settings.item_fields, *([FIRST_SEEN] if settings.fresh_share else [])]
    # Read only existing columns: the error of `raw_columns` about missing ones is clearer than that of Parquet.
    columns = [f"{RAW_ITEM}{name}" for name in wanted]
    dataset = pyarrow.dataset.dataset(catalogue, filesystem=storage.filesystem)
    there = [name for name in columns if name in dataset.schema.names]
    table = dataset.to_table(columns=[ITEM_ID, "item_index", *there]).sort_by("item_index")
    item_ids = table[ITEM_ID].combine_chunks() if stored is None else stored[ITEM_ID].combine_chunks()
    place = index_of(item_ids, table[ITEM_ID].combine_chunks())
    # Items of an older catalogue that no longer exist have no values.
    rows = table.take(pa.array(place, pa.int32(), mask=place < 0))
    filters = evaluate_item_filters(
        settings.filters,
        pa.table(raw_columns(rows, RAW_ITEM, wanted)),
        item_ids,
        now,
        item_features=preprocessor.items.declarations,
        user_features=preprocessor.users.declarations,
        fresh_days=settings.fresh_days if settings.fresh_share else None,
    )
    return filters, (dict(filters.left_out), tuple(filters.notes))


def _popularity(
    data: TrainingData, shape: FeatureShape, settings: CandidateSettings, storage: Storage
) -> ray.ObjectRef:
    """Return a reference to the popular items, per segment if users have one."""
    if settings.segment is None:
        return _overall_popularity.remote(data.catalogue_now, storage)
    counted = read_rows(storage, data.timelines).map_batches(
        _count_block,
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={"shape": shape, "segment": settings.segment},
    )
    counts = counted.materialize().to_arrow_refs()
    while len(counts) > 1:
        counts = [_add_counts.remote(*counts[i : i + 8]) for i in range(0, len(counts), 8)]
    return _overall_popularity.remote(data.catalogue_now, storage, *counts)


def _count_block(batch: pa.Table, shape: FeatureShape, segment: str) -> pa.Table:
    segments = raw_columns(batch, RAW_NOW, [segment])[segment]
    return count_by_segment(Timelines.from_table(batch, shape), pc.cast(segments, pa.string()))


@ray.remote(num_cpus=1)
def _add_counts(*parts: pa.Table) -> pa.Table:
    return add_counts(*parts)


@ray.remote(num_cpus=1)
def _overall_popularity(catalogue: str, storage: Storage, *counts: pa.Table) -> SegmentPopularity:
    columns = ["item_index", "count"]
    items = pq.read_table(catalogue, filesystem=storage.filesystem, columns=columns).sort_by("item_index")
    return SegmentPopularity.of(items["count"].to_numpy(), *counts)
