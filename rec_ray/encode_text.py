"""`FeatureTables` into `FeatureTables` whose items carry a vector of their text, made by a language model.

The declared text fields of an item are joined and encoded once by a pool of actors; vectors are kept in the object
store by the hash of their text, so a later run encodes new texts only. It knows neither towers nor Feast.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy

from rec_ray.config import FeatureSettings
from rec_ray.contracts import FeatureTables
from rec_ray.errors import SchemaError, listed
from rec_ray.logs import LOGGER
from rec_ray.process_cache import shared_value
from rec_ray.retrieval.text_encoder import TextEncoder, fingerprint
from rec_ray.schema import FeatureDeclaration
from rec_ray.storage import Storage

HASHING, TRANSFORMERS = "hashing", "transformers:"
TEXT_VECTOR = "text_vector"
"""The feature that stands for all text fields of an item."""
VECTORS = "text_vectors"
"""Folder of the object store with the vectors that were made, a folder a model."""
TEXTS = 512
"""Texts of one call of an actor."""
_HASH, _TEXT = "hash", "text"


@dataclass(frozen=True)
class EncodedText:
    """Tables whose items have `TEXT_VECTOR`, and the settings under which it is read.

    encoded, kept: texts that were encoded now, and those whose vectors were there.
    """

    tables: FeatureTables
    features: FeatureSettings
    encoded: int
    kept: int


def encode_item_text(tables: FeatureTables, features: FeatureSettings, encoder: str, storage: Storage) -> EncodedText:
    """Give every item a vector of its texts, in the place of the declared text features.

    encoder: `transformers:` and the name or folder of a model; every node must be able to load it.

    Raises:
        ConfigError: transformers or the model is missing.
        SchemaError: no item feature is declared as text, or one of them is not there.
    """
    fields = [name for name, declaration in features.item.items() if declaration.kind == "text"]
    if not fields:
        raise SchemaError(
            "features.text_encoder names a model, but no feature of items is declared as text; declare one with "
            "`kind: text`, or take `text_encoder: hashing`"
        )
    name = encoder.removeprefix(TRANSFORMERS)
    model, dimensions = ray.get(_describe.remote(name))
    items = tables.items.materialize()
    # The two instants of an item stay in one block, as they came.
    items.context.target_max_block_size = None
    folder = f"{VECTORS}/{model}"
    known = _known.remote(storage, folder)
    encoded, kept = _encode_missing(items, fields, name, known, storage, folder)
    with_vectors = items.map_batches(
        _attach,
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={"fields": fields, "storage": storage, "folder": folder},
    )
    return EncodedText(
        replace(tables, items=with_vectors), with_text_vector(features, dimensions), encoded=encoded, kept=kept
    )


def with_text_vector(features: FeatureSettings, dimensions: int) -> FeatureSettings:
    """Return the settings with `TEXT_VECTOR` for items in the place of their text features.

    Raises:
        SchemaError: a feature of that name is declared already.
    """
    if TEXT_VECTOR in features.item:
        raise SchemaError(f"the item feature {TEXT_VECTOR!r} has the name of what features.text_encoder makes")
    others = {name: declaration for name, declaration in features.item.items() if declaration.kind != "text"}
    vector = FeatureDeclaration("vector", length=dimensions)
    return features.model_copy(update={"item": {**others, TEXT_VECTOR: vector}})


def _encode_missing(
    items: ray.data.Dataset, fields: Sequence[str], name: str, known: ray.ObjectRef, storage: Storage, folder: str
) -> tuple[int, int]:
    """Encode the texts that have no vector yet and keep them; return how many, and how many had one."""
    texts = items.map_batches(
        _missing_texts, batch_size=None, batch_format="pyarrow", fn_kwargs={"fields": fields, "known": known}
    ).materialize()
    counted = texts.map_batches(_count, batch_size=None, batch_format="pyarrow").take_all()
    missing, kept = sum(row["missing"] for row in counted), sum(row["kept"] for row in counted)
    if not missing:
        return 0, kept
    cpus = int(ray.cluster_resources().get("CPU", 1))
    # Actors that together reserved every CPU would leave none for the tasks that feed them.
    actors, share = (cpus - 1, 1.0) if cpus > 1 else (1, 0.5)
    blocks = max(1, -(-missing // TEXTS))
    LOGGER.info("encode_text: %s texts by %d actors", f"{missing:,}", min(actors, blocks))
    written = (
        texts.map_batches(_only_missing, batch_size=None, batch_format="pyarrow")
        .repartition(blocks)
        .map_batches(
            _EncodingActor,
            batch_size=TEXTS,
            batch_format="pyarrow",
            fn_constructor_kwargs={"name": name, "storage": storage, "folder": folder},
            compute=ActorPoolStrategy(min_size=1, max_size=min(actors, blocks)),
            num_cpus=share,
        )
    )
    return sum(row["encoded"] for row in written.iter_rows()), kept


@ray.remote(num_cpus=0.5)
def _describe(name: str) -> tuple[str, int]:
    return fingerprint(name), TextEncoder(name).dimensions


@ray.remote(num_cpus=0.5)
def _known(storage: Storage, folder: str) -> pa.Array:
    """Return the hashes of the texts that have a vector."""
    found = _vectors(storage, folder)
    return pa.array([], pa.string()) if found is None else pc.unique(found.to_table(columns=[_HASH])[_HASH])


def _vectors(storage: Storage, folder: str) -> Any:
    names = [name for name in storage.list(folder) if name.endswith(".parquet")]
    if not names:
        return None
    paths = [storage.path(folder, name.rpartition("/")[2]) for name in names]
    return pads.dataset(paths, filesystem=storage.filesystem, format="parquet")


def joined_texts(items: pa.Table, fields: Sequence[str]) -> pa.Array:
    """Return the text of each item, its fields one after another; null where all are empty.

    Raises:
        SchemaError: a field is not there or is no text.
    """
    missing = [field for field in fields if field not in items.column_names]
    if missing:
        raise SchemaError(f"there is no item feature {listed(missing)}; the items have {listed(items.column_names)}")
    try:
        columns = [pc.utf8_trim_whitespace(pc.fill_null(pc.cast(items[field], pa.string()), "")) for field in fields]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(f"the item features {listed(fields)} are declared as text: {error}") from None
    whole = [column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column for column in columns]
    text = pc.utf8_trim_whitespace(pc.binary_join_element_wise(*whole, "\n"))
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _hashes(texts: pa.Array) -> pa.Array:
    hashes = [None if text is None else hashlib.sha256(text.encode()).hexdigest() for text in texts.to_pylist()]
    return pa.array(hashes, pa.string())


def _missing_texts(items: pa.Table, fields: Sequence[str], known: ray.ObjectRef) -> pa.Table:
    """Return the distinct texts of a block by their hash; those that have a vector stand there without their text."""
    texts = joined_texts(items, fields) if items.num_rows else pa.array([], pa.string())
    table = pa.table({_HASH: _hashes(texts), _TEXT: texts}).filter(pc.is_valid(texts))
    table = table.group_by(_HASH).aggregate([(_TEXT, "min")]).rename_columns([_HASH, _TEXT])
    hashes = table[_HASH].combine_chunks()
    there = pc.is_in(hashes, value_set=shared_value(known))
    text = pc.if_else(there, pa.scalar(None, pa.string()), table[_TEXT].combine_chunks())
    return pa.table({_HASH: hashes, _TEXT: text})


def _only_missing(texts: pa.Table) -> pa.Table:
    return texts.filter(pc.is_valid(texts[_TEXT]))


def _count(texts: pa.Table) -> pa.Table:
    kept = texts[_TEXT].null_count
    return pa.table({"missing": [texts.num_rows - kept], "kept": [kept]})


class _EncodingActor:
    """Holds the model, encodes texts and keeps their vectors; a batch that is encoded again has the same name."""

    def __init__(self, name: str, storage: Storage, folder: str) -> None:
        torch.set_num_threads(1)
        self.encoder, self.storage, self.folder = TextEncoder(name), storage, folder

    def __call__(self, batch: pa.Table) -> pa.Table:
        vectors = self.encoder.encode(batch[_TEXT].to_pylist())
        size = vectors.shape[1]
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1), pa.float32()), size)
        table = pa.table({_HASH: batch[_HASH].combine_chunks(), TEXT_VECTOR: lists}).sort_by(_HASH)
        data = io.BytesIO()
        pq.write_table(table, data)
        name = hashlib.sha256("".join(table[_HASH].to_pylist()).encode()).hexdigest()[:24]
        self.storage.write_bytes(f"{self.folder}/{name}.parquet", data.getvalue())
        return pa.table({"encoded": [table.num_rows]})


def _attach(items: pa.Table, fields: Sequence[str], storage: Storage, folder: str) -> pa.Table:
    """Append the vector of each item's text; null where there is none."""
    kind = pa.list_(pa.float32())
    if TEXT_VECTOR in items.column_names:
        items = items.drop_columns([TEXT_VECTOR])
    if not items.num_rows:
        return items.append_column(TEXT_VECTOR, pa.array([], kind))
    hashes = _hashes(joined_texts(items, fields))
    wanted = pc.unique(hashes).drop_null()
    found = _vectors(storage, folder)
    if found is None or not len(wanted):
        return items.append_column(TEXT_VECTOR, pa.nulls(items.num_rows, kind))
    table = found.to_table(filter=pads.field(_HASH).isin(wanted)).combine_chunks()
    place = pc.index_in(hashes, value_set=table[_HASH].combine_chunks(), skip_nulls=True)
    vectors = pc.cast(table[TEXT_VECTOR].combine_chunks(), kind).take(place)
    if vectors.null_count > hashes.null_count:
        raise SchemaError(f"{vectors.null_count - hashes.null_count:,} texts have no vector in {storage.uri(folder)}")
    return items.append_column(TEXT_VECTOR, vectors)
