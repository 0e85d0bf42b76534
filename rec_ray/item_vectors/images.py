"""Cached vectors of item images: each image is fetched once per run and encoded once, by actors that hold a model.

Input: a Ray dataset of items and the name of the field with image addresses. Output: a `VectorCache` with the vectors
by the hash of an image's bytes, and `EncodedImages` with the hash of each address.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy

from rec_ray.distributed.worker_cache import get_shared
from rec_ray.errors import DataError
from rec_ray.item_vectors.fetch import ImageFiles, describe_address
from rec_ray.item_vectors.texts import actor_capacity, join_texts, known_hashes
from rec_ray.logs import LOGGER
from rec_ray.retrieval.encoders.image import ImageEncoder, decode_image
from rec_ray.storage.vector_cache import HASH, VectorCache, content_hash

FOLDER = "image_vectors"
"""Folder of the object store with the cached vectors, one sub-folder per model."""
IMAGES = 32
"""Images per call of an actor, all of which are in memory decoded."""
NAMED = 3
"""Unreadable images that a warning names."""
_ADDRESS, _WHY, _NEW = "address", "why", "new"


@dataclass(frozen=True)
class EncodedImages:
    """Result of encoding the images of a field.

    hashes: reference to a table of addresses and the hashes of their images. encoded, kept: numbers of newly encoded
    images, and of images whose vectors were cached. unreadable: number of addresses without an image.
    """

    hashes: ray.ObjectRef
    encoded: int
    kept: int
    unreadable: int


def encode_images(
    items: ray.data.Dataset, field: str, model: str, cache: VectorCache, files: ImageFiles
) -> EncodedImages:
    """Fetch the image of every address and encode those without a cached vector; one warning names unreadable images.

    An image at several addresses is encoded once by each actor that fetches it.

    Raises:
        ConfigError: the model is missing.
        SchemaError: the field is missing or is no text.
    """
    addresses = items.map_batches(
        _addresses, batch_size=None, batch_format="pyarrow", fn_kwargs={"field": field}
    ).materialize()
    count = addresses.count()
    if not count:
        return EncodedImages(ray.put(_to_table([])), 0, 0, 0)
    blocks = max(1, -(-count // IMAGES))
    if addresses.num_blocks() > 1:
        addresses = addresses.repartition(blocks, keys=[_ADDRESS]).map_batches(
            _distinct, batch_size=None, batch_format="pyarrow"
        )
    else:
        addresses = addresses.repartition(blocks)
    actors, share = actor_capacity()
    LOGGER.info("%s images to fetch by %d actors", f"{count:,}", min(actors, blocks))
    known = known_hashes.remote(cache)
    found = addresses.map_batches(
        _ImageActor,
        batch_size=IMAGES,
        batch_format="pyarrow",
        fn_constructor_kwargs={"model": model, "cache": cache, "files": files, "known": [known]},
        compute=ActorPoolStrategy(min_size=1, max_size=min(actors, blocks)),
        num_cpus=share,
    ).materialize()
    hashes, summary = _collect.remote(*found.to_arrow_refs())
    read, encoded, unreadable, examples = ray.get(summary)
    if unreadable:
        LOGGER.warning(
            "%s of %s images cannot be read, so their items have no image vector: %s%s",
            f"{unreadable:,}",
            f"{read + unreadable:,}",
            "; ".join(examples),
            " and others" if unreadable > len(examples) else "",
        )
    return EncodedImages(hashes, encoded, read - encoded, unreadable)


def image_vectors_of(items: pa.Table, field: str, hashes: pa.Table, cache: VectorCache) -> pa.Array:
    """Return the vector of each item's image as a list, null for items without a readable image.

    hashes: the table of `EncodedImages`.

    Raises:
        DataError: an image was not encoded.
    """
    place = pc.index_in(join_texts(items, [field]), value_set=hashes[_ADDRESS].combine_chunks(), skip_nulls=True)
    return cache.read(hashes[HASH].combine_chunks().take(place))


def _addresses(items: pa.Table, field: str) -> pa.Table:
    if not items.num_rows:
        return pa.table({_ADDRESS: pa.array([], pa.string())})
    return _distinct(pa.table({_ADDRESS: join_texts(items, [field])}))


def _distinct(addresses: pa.Table) -> pa.Table:
    return pa.table({_ADDRESS: pc.unique(addresses[_ADDRESS]).drop_null()})


def _to_table(rows: list[dict[str, Any]]) -> pa.Table:
    kinds = [(_ADDRESS, pa.string()), (HASH, pa.string()), (_WHY, pa.string()), (_NEW, pa.bool_())]
    return pa.Table.from_pylist(rows, schema=pa.schema(kinds))


@ray.remote(num_cpus=0.5, num_returns=2)
def _collect(*parts: pa.Table) -> tuple[pa.Table, tuple[int, int, int, list[str]]]:
    """Return the addresses with an image, and the numbers of images read, encoded and unreadable, with some reasons."""
    table = pa.concat_tables([part for part in parts if part.num_rows])
    unreadable = table.filter(pc.is_valid(table[_WHY]))
    readable = table.filter(pc.is_null(table[_WHY])).select([_ADDRESS, HASH, _NEW])
    examples = unreadable.sort_by(_ADDRESS).slice(0, NAMED).to_pylist()
    descriptions = [f"{describe_address(row[_ADDRESS])} ({row[_WHY]})" for row in examples]
    images = len(pc.unique(readable[HASH]))
    encoded = len(pc.unique(readable.filter(readable[_NEW])[HASH]))
    return readable.select([_ADDRESS, HASH]), (images, encoded, unreadable.num_rows, descriptions)


class _ImageActor:
    """Actor that holds the model, fetches images, encodes those without a vector and caches the vectors."""

    def __init__(self, model: str, cache: VectorCache, files: ImageFiles, known: list[ray.ObjectRef]) -> None:
        torch.set_num_threads(1)
        self.encoder, self.cache, self.files = ImageEncoder(model), cache, files
        self.known, self.encoded = get_shared(known[0]), set[str]()

    def __call__(self, batch: pa.Table) -> pa.Table:
        addresses = batch[_ADDRESS].to_pylist()
        rows = [
            self._row(address, data) for address, data in zip(addresses, self.files.read_all(addresses), strict=True)
        ]
        hashes = pa.array([row[HASH] for row in rows], pa.string())
        cached = pc.is_in(hashes, value_set=self.known).to_pylist()
        images: dict[str, Any] = {}
        for row, is_known in zip(rows, cached, strict=True):
            data, name = row.pop("data"), row[HASH]
            row[_NEW] = name is not None and not is_known
            if not row[_NEW] or name in self.encoded or name in images:
                continue
            try:
                images[name] = decode_image(data)
            except DataError as error:
                row[HASH], row[_WHY], row[_NEW] = None, str(error), False
        if images:
            self.cache.write(list(images), np.asarray(self.encoder.encode_images(list(images.values()))))
            self.encoded |= set(images)
        return _to_table(rows)

    @staticmethod
    def _row(address: str, data: bytes | DataError) -> dict[str, Any]:
        failed = isinstance(data, DataError)
        why = str(data) if failed else None
        return {
            _ADDRESS: address,
            HASH: None if isinstance(data, DataError) else content_hash(data),
            _WHY: why,
            "data": data,
        }
