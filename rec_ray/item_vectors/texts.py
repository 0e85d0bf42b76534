"""Cached vectors of item texts: each text is encoded once, by a pool of actors that hold a model.

Input: a Ray dataset of items and the names of its text fields. Output: a `VectorCache` with the vector of every text,
in which `vectors_of` looks them up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import torch
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy

from rec_ray.distributed.worker_cache import get_shared
from rec_ray.errors import SchemaError, list_names
from rec_ray.logs import LOGGER
from rec_ray.storage.vector_cache import HASH, VectorCache, content_hashes

FOLDER = "text_vectors"
"""Folder of the object store with the cached vectors, one sub-folder per model."""
TEXTS = 512
"""Texts per call of an actor."""
_TEXT = "text"


class Encoder(Protocol):
    """Encoder of texts: [n] strings -> [n, dimensions] float32."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return a vector for each text."""
        ...


def join_texts(items: pa.Table, fields: Sequence[str]) -> pa.Array:
    """Return the text of each item, its fields one after another; null if all are empty.

    Raises:
        SchemaError: a field is missing or is no text.
    """
    missing = [field for field in fields if field not in items.column_names]
    if missing:
        raise SchemaError(
            f"there is no item feature {list_names(missing)}; the items have {list_names(items.column_names)}"
        )
    try:
        columns = [pc.utf8_trim_whitespace(pc.fill_null(pc.cast(items[field], pa.string()), "")) for field in fields]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(f"the item features {list_names(fields)} are declared as text: {error}") from None
    arrays = [column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column for column in columns]
    text = pc.utf8_trim_whitespace(pc.binary_join_element_wise(*arrays, "\n"))
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def vectors_of(items: pa.Table, fields: Sequence[str], cache: VectorCache) -> pa.Array:
    """Return the vector of each item's joined text as a list, null without text.

    Raises:
        DataError: a text was not encoded.
    """
    return cache.read(content_hashes(join_texts(items, fields)))


def encode_texts(
    items: ray.data.Dataset, fields: Sequence[str], make_encoder: Callable[[], Encoder], cache: VectorCache
) -> tuple[int, int]:
    """Encode the joined texts of items without a cached vector; return the numbers of encoded and of cached texts.

    make_encoder: called once in each actor. A text of items in several blocks is encoded once and counts as cached in
    the other blocks.

    Raises:
        SchemaError: as `join_texts`.
    """
    known = known_hashes.remote(cache)
    texts = items.map_batches(
        _missing_texts, batch_size=None, batch_format="pyarrow", fn_kwargs={"fields": fields, "known": known}
    ).materialize()
    counted = texts.map_batches(_count, batch_size=None, batch_format="pyarrow").take_all()
    missing, kept = sum(row["missing"] for row in counted), sum(row["kept"] for row in counted)
    if not missing:
        return 0, kept
    actors, share = actor_capacity()
    blocks = max(1, -(-missing // TEXTS))
    LOGGER.info("%s texts to encode by %d actors", f"{missing:,}", min(actors, blocks))
    new = texts.map_batches(_only_missing, batch_size=None, batch_format="pyarrow")
    if texts.num_blocks() > 1:
        new = new.repartition(blocks, keys=[HASH]).map_batches(_distinct, batch_size=None, batch_format="pyarrow")
    else:
        new = new.repartition(blocks)
    written = new.map_batches(
        _EncodingActor,
        batch_size=TEXTS,
        batch_format="pyarrow",
        fn_constructor_kwargs={"make_encoder": make_encoder, "cache": cache},
        compute=ActorPoolStrategy(min_size=1, max_size=min(actors, blocks)),
        num_cpus=share,
    )
    encoded = sum(row["encoded"] for row in written.iter_rows())
    return encoded, kept + missing - encoded


def actor_capacity() -> tuple[int, float]:
    """Return the number of actors that fit, and the CPUs of each.

    Actors that reserve every CPU would leave none for the tasks that feed them.
    """
    cpus = int(ray.cluster_resources().get("CPU", 1))
    return (cpus - 1, 1.0) if cpus > 1 else (1, 0.5)


@ray.remote(num_cpus=0.5)
def known_hashes(cache: VectorCache) -> pa.Array:
    """Return the hashes with a cached vector."""
    return cache.hashes()


def _missing_texts(items: pa.Table, fields: Sequence[str], known: ray.ObjectRef) -> pa.Table:
    """Return the distinct texts of a block by their hash, with a null text for those that have a cached vector."""
    texts = join_texts(items, fields) if items.num_rows else pa.array([], pa.string())
    table = _distinct(pa.table({HASH: content_hashes(texts), _TEXT: texts}).filter(pc.is_valid(texts)))
    hashes = table[HASH].combine_chunks()
    cached = pc.is_in(hashes, value_set=get_shared(known))
    text = pc.if_else(cached, pa.scalar(None, pa.string()), table[_TEXT].combine_chunks())
    return pa.table({HASH: hashes, _TEXT: text})


def _distinct(texts: pa.Table) -> pa.Table:
    return texts.group_by(HASH).aggregate([(_TEXT, "min")]).rename_columns([HASH, _TEXT])


def _only_missing(texts: pa.Table) -> pa.Table:
    return texts.filter(pc.is_valid(texts[_TEXT]))


def _count(texts: pa.Table) -> pa.Table:
    kept = texts[_TEXT].null_count
    return pa.table({"missing": [texts.num_rows - kept], "kept": [kept]})


class _EncodingActor:
    """Actor that holds the model, encodes texts and caches their vectors; a repeated batch overwrites its own file."""

    def __init__(self, make_encoder: Callable[[], Any], cache: VectorCache) -> None:
        torch.set_num_threads(1)
        self.encoder, self.cache = make_encoder(), cache

    def __call__(self, batch: pa.Table) -> pa.Table:
        if batch.num_rows:
            self.cache.write(batch[HASH].to_pylist(), self.encoder.encode(batch[_TEXT].to_pylist()))
        return pa.table({"encoded": [batch.num_rows]})
