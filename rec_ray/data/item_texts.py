"""Adds a text vector from a language model to the items of `FeatureTables`.

A pool of actors joins the declared text fields of an item and encodes them once. The object store caches vectors by the
hash of their text, so that a later run encodes only new texts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import ray

from rec_ray.config import FeatureSettings
from rec_ray.contracts import FeatureTables
from rec_ray.errors import SchemaError
from rec_ray.item_vectors.texts import FOLDER, encode_texts, vectors_of
from rec_ray.retrieval.encoders.text import TextEncoder, fingerprint
from rec_ray.schema import FeatureDeclaration
from rec_ray.storage.object_store import Storage
from rec_ray.storage.vector_cache import VectorCache

HASHING, TRANSFORMERS = "hashing", "transformers:"
TEXT_VECTOR = "text_vector"
"""Feature that replaces all text fields of an item."""


@dataclass(frozen=True)
class EncodedText:
    """Tables whose items have `TEXT_VECTOR`, and the settings that declare it.

    encoded, kept: numbers of newly encoded texts, and of texts with a cached vector.
    """

    tables: FeatureTables
    features: FeatureSettings
    encoded: int
    kept: int


def encode_item_text(tables: FeatureTables, features: FeatureSettings, encoder: str, storage: Storage) -> EncodedText:
    """Add a text vector to every item, and replace the declared text features by it.

    encoder: `transformers:` and the name or folder of a model; every node must be able to load it.

    Raises:
        ConfigError: transformers or the model is missing.
        SchemaError: no item feature is declared as text, or one of them is missing.
    """
    fields = [name for name, declaration in features.item.items() if declaration.kind == "text"]
    if not fields:
        raise SchemaError(
            "features.text_encoder names a model, but no feature of items is declared as text; declare one with "
            "`kind: text`, or set `text_encoder: hashing`"
        )
    name = encoder.removeprefix(TRANSFORMERS)
    model, dimensions = ray.get(_describe.remote(name))
    cache = VectorCache(storage, f"{FOLDER}/{model}")
    items = tables.items.materialize()
    # Unlimited block size: both rows of an item stay in one block.
    items.context.target_max_block_size = None
    encoded, kept = encode_texts(items, fields, functools.partial(TextEncoder, name), cache)
    with_vectors = items.map_batches(
        _attach,
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={"fields": fields, "cache": cache},
    )
    return EncodedText(
        replace(tables, items=with_vectors), with_text_vector(features, dimensions), encoded=encoded, kept=kept
    )


def with_text_vector(features: FeatureSettings, dimensions: int) -> FeatureSettings:
    """Return the settings with `TEXT_VECTOR` in place of the items' text features.

    Raises:
        SchemaError: a feature of that name is already declared.
    """
    if TEXT_VECTOR in features.item:
        raise SchemaError(
            f"the item feature {TEXT_VECTOR!r} has the name of the feature that features.text_encoder adds; rename it"
        )
    others = {name: declaration for name, declaration in features.item.items() if declaration.kind != "text"}
    vector = FeatureDeclaration("vector", length=dimensions)
    return features.model_copy(update={"item": {**others, TEXT_VECTOR: vector}})


@ray.remote(num_cpus=0.5)
def _describe(name: str) -> tuple[str, int]:
    encoder = TextEncoder(name)
    return fingerprint(name, encoder.pooling), encoder.dimensions


def _attach(items: pa.Table, fields: Sequence[str], cache: VectorCache) -> pa.Table:
    """Append the vector of each item's text, null for items without text."""
    if TEXT_VECTOR in items.column_names:
        items = items.drop_columns([TEXT_VECTOR])
    if not items.num_rows:
        return items.append_column(TEXT_VECTOR, pa.array([], pa.list_(pa.float32())))
    return items.append_column(TEXT_VECTOR, vectors_of(items, fields, cache))
