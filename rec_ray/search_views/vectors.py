"""Vectors of item texts and images for the views that are searched by text or image, stored with the candidates.

Input: the catalogue as of now with its raw fields. Each text and image is encoded once. Output: a row for every item
that has a vector, beside the candidates of the version, and an entry in their manifest. Another step pushes the rows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from rec_ray.candidate_store.manifest import (
    MANIFEST,
    PENDING,
    SEARCH,
    SearchView,
    new_generation,
    read_manifest,
    search_folder,
    write_manifest,
)
from rec_ray.candidate_store.writer import PartsSink
from rec_ray.config import SearchSettings
from rec_ray.contracts import SearchVectors, TrainingData
from rec_ray.distributed.parquet_source import read_rows
from rec_ray.distributed.worker_cache import get_shared
from rec_ray.item_vectors.fetch import ImageFiles
from rec_ray.item_vectors.images import FOLDER as IMAGE_FOLDER
from rec_ray.item_vectors.images import EncodedImages, encode_images, image_vectors_of
from rec_ray.item_vectors.texts import FOLDER as TEXT_FOLDER
from rec_ray.item_vectors.texts import encode_texts, vectors_of
from rec_ray.logs import LOGGER
from rec_ray.retrieval.encoders.image import ImageEncoder, image_dimensions
from rec_ray.retrieval.encoders.text import TextEncoder, declared_pooling, fingerprint, text_dimensions
from rec_ray.retrieval.lists.item_filters import raw_columns
from rec_ray.schema import ITEM_ID, RAW_ITEM
from rec_ray.storage.object_store import Storage
from rec_ray.storage.vector_cache import VECTORS, VectorCache


@dataclass(frozen=True)
class _Column:
    """Sources of one field of a view: caches and item fields.

    image: field with the address of an image, or None. hashes: list with the reference of `EncodedImages`, or empty.
    """

    name: str
    texts: Sequence[str]
    text_cache: VectorCache
    image: str | None = None
    image_cache: VectorCache | None = None
    hashes: Sequence[ray.ObjectRef] = ()
    image_weight: float = 1.0


def make_search_vectors(
    data: TrainingData, settings: SearchSettings, storage: Storage, *, version: str, prefix: str, repo: str
) -> SearchVectors:
    """Write the vectors of every view that has an encoder, and add them to the manifest of the candidates.

    prefix: key of complete candidates. repo: folder that relative image paths start from. Vectors of an earlier attempt
    are computed again; the parts of earlier vectors stay for readers of the manifest before.

    Raises:
        ConfigError: transformers or a model is missing.
        DataError: there are no candidates.
        SchemaError: a field is no text.
    """
    name = PENDING if storage.exists(f"{prefix}/{PENDING}") else MANIFEST
    manifest = read_manifest(storage, prefix, name)
    parts = {folder: each for folder, each in manifest.parts.items() if not folder.startswith(f"{SEARCH}/")}
    generation = new_generation()
    items = read_rows(storage, data.catalogue_now).map_batches(
        _raw_fields, batch_size=None, batch_format="pyarrow", fn_kwargs={"fields": list(settings.item_fields)}
    )
    names = ray.get(_cache_names.remote(settings.text_model, settings.image_model))
    encodings = _Encodings(
        items, settings, storage, ImageFiles(storage, repo, settings.image_seconds, settings.image_bytes), names
    )
    dimensions = find_search_dimensions(settings)
    rows: dict[str, int] = {}
    described: dict[str, SearchView] = {}
    for source, fields in settings.vectors.items():
        columns = [
            encodings.text(source, name) if source in encodings.texts else encodings.image(source, name)
            for name in fields
        ]
        schema = pa.schema([(ITEM_ID, pa.string()), *((name, VECTORS) for name in fields)])
        sink = PartsSink(storage, prefix, {search_folder(source): schema}, generation=generation)
        items.map_batches(
            _rows, batch_size=None, batch_format="pyarrow", fn_kwargs={"columns": columns}
        ).write_datasink(sink)
        parts |= {folder: tuple(each) for folder, each in sink.parts.items()}
        rows[source] = sum(part.rows for part in sink.parts[search_folder(source)])
        encoder = settings.text_encoder if source in encodings.texts else settings.image_encoder
        described[source] = SearchView(dimensions[source], encoder)
        if not rows[source]:
            LOGGER.warning(
                "no item has a vector for %s; check that the fields %s have values", source, ", ".join(fields)
            )
    write_manifest(storage, prefix, dataclasses.replace(manifest, parts=parts, search=described), name)
    return SearchVectors(version, rows, encodings.encoded, encodings.kept, encodings.unreadable)


def search_dimensions(settings: SearchSettings) -> dict[str, dict[str, int]]:
    """Return the length of each vector, by push source and field, without reading the weights of the models.

    Raises:
        ConfigError: transformers or a model is missing.
    """
    if not settings.vectors:
        return {}
    text = text_dimensions(settings.text_model) if settings.text_encoder else 0
    image = image_dimensions(settings.image_model) if settings.image_encoder else 0
    texts = settings.text_views if settings.text_encoder else {}
    return {
        source: dict.fromkeys(fields, text if source in texts else image) for source, fields in settings.vectors.items()
    }


def find_search_dimensions(settings: SearchSettings) -> dict[str, dict[str, int]]:
    """Return `search_dimensions`, computed by a task, because transformers would stay in the driver's memory."""
    return ray.get(_dimensions.remote(settings)) if settings.vectors else {}


class _Encodings:
    """Encodings of a run; the same fields are encoded once, even if several views have them."""

    def __init__(
        self,
        items: ray.data.Dataset,
        settings: SearchSettings,
        storage: Storage,
        files: ImageFiles,
        names: Mapping[str, str],
    ) -> None:
        self.items, self.settings, self.files = items, settings, files
        self.texts = settings.text_views if settings.text_encoder else {}
        self.caches = {name: VectorCache(storage, folder) for name, folder in names.items()}
        self.encoded = self.kept = self.unreadable = 0
        self._texts: set[tuple[str, ...]] = set()
        self._images: dict[str, EncodedImages] = {}

    def text(self, source: str, name: str) -> _Column:
        """Encode the texts of a field of a view that is searched by text."""
        fields = self.settings.text_views[source][name]
        self._encode_texts("text", fields, functools.partial(TextEncoder, self.settings.text_model))
        return _Column(name, fields, self.caches["text"])

    def image(self, source: str, name: str) -> _Column:
        """Encode the images and texts of a field of a view that is searched by image."""
        declared, model = self.settings.image_views[source][name], self.settings.image_model
        if declared.text:
            self._encode_texts("image_text", declared.text, functools.partial(ImageEncoder, model))
        if declared.image not in self._images:
            images = encode_images(self.items, declared.image, model, self.caches["image"], self.files)
            self._images[declared.image] = images
            self.encoded, self.kept = self.encoded + images.encoded, self.kept + images.kept
            self.unreadable += images.unreadable
        return _Column(
            name,
            declared.text,
            self.caches["image_text"],
            declared.image,
            self.caches["image"],
            [self._images[declared.image].hashes],
            self.settings.image_weight,
        )

    def _encode_texts(self, cache: str, fields: Sequence[str], make_encoder: Any) -> None:
        if (cache, *fields) not in self._texts:
            self._texts.add((cache, *fields))
            encoded, kept = encode_texts(self.items, fields, make_encoder, self.caches[cache])
            self.encoded, self.kept = self.encoded + encoded, self.kept + kept


@ray.remote(num_cpus=0.5)
def _cache_names(text_model: str, image_model: str) -> dict[str, str]:
    """Return the cache folders of the vectors of the configured models."""
    names = {}
    if text_model:
        names["text"] = f"{TEXT_FOLDER}/{fingerprint(text_model, declared_pooling(text_model))}"
    if image_model:
        names["image"] = f"{IMAGE_FOLDER}/{fingerprint(image_model)}"
        names["image_text"] = f"{TEXT_FOLDER}/{fingerprint(image_model)}"
    return names


@ray.remote(num_cpus=0.5)
def _dimensions(settings: SearchSettings) -> dict[str, dict[str, int]]:
    return search_dimensions(settings)


def _raw_fields(items: pa.Table, fields: Sequence[str]) -> pa.Table:
    """Return the ids and the raw fields by their own names."""
    return pa.table({ITEM_ID: items[ITEM_ID], **raw_columns(items, RAW_ITEM, fields)})


def _rows(items: pa.Table, columns: Sequence[_Column]) -> pa.Table:
    """Return the items that have at least one vector, with all their vectors."""
    if not items.num_rows:
        return pa.table({ITEM_ID: pa.array([], pa.string()), **{each.name: pa.array([], VECTORS) for each in columns}})
    found = {each.name: _vectors(items, each) for each in columns}
    present = functools.reduce(pc.or_, [pc.is_valid(vectors) for vectors in found.values()])
    return pa.table({ITEM_ID: items[ITEM_ID], **found}).filter(present)


def _vectors(items: pa.Table, column: _Column) -> pa.Array:
    texts = vectors_of(items, column.texts, column.text_cache) if column.texts else pa.nulls(items.num_rows, VECTORS)
    if column.image is None or column.image_cache is None:
        return texts
    images = image_vectors_of(items, column.image, get_shared(column.hashes[0]), column.image_cache)
    return mixed(images, texts, column.image_weight)


def mixed(images: pa.Array, texts: pa.Array, image_weight: float) -> pa.Array:
    """Return the weighted mean of two unit vectors at unit length; a single vector unchanged, null without a vector.

    images, texts: n lists of equal length of float32, or null. An image weighs `image_weight`, a text 1.
    """
    present = pc.or_(pc.is_valid(images), pc.is_valid(texts))
    lengths = pc.list_value_length(pa.concat_arrays([images, texts])).drop_null()
    if not len(lengths):
        return texts
    total = image_weight * _dense(images, lengths[0].as_py()) + _dense(texts, lengths[0].as_py())
    length = np.linalg.norm(total, axis=1, keepdims=True)
    unit = (total / np.maximum(length, np.finfo(np.float32).tiny)).astype(np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(unit.reshape(-1)), unit.shape[1]).cast(VECTORS)
    return pc.if_else(present, lists, pa.scalar(None, VECTORS))


def _dense(vectors: pa.Array, dimensions: int) -> Any:
    """Return lists as a matrix, with a row of zeros for null."""
    rows = np.zeros((len(vectors), dimensions), np.float32)
    present = pc.is_valid(vectors).to_numpy(zero_copy_only=False)
    rows[present] = vectors.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, dimensions)
    return rows
