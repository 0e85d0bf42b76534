"""Versions as a run stores them, with candidates of any size and files of a model that nobody may read.

A store, a version and ids come in; the folder of the version lies there afterwards, whole by its manifests. The weights
are no weights: whoever loads the model where it is not needed fails.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from rec_ray.candidate_store.manifest import parse_manifest
from rec_ray.candidate_store.parts import StoredCandidates
from rec_ray.schema import ITEM_EMBEDDINGS, RECOMMENDATIONS, USER_EMBEDDINGS
from rec_ray.storage.object_store import Storage

VECTORS = pa.list_(pa.float32())
NO_WEIGHTS = b"these are no weights"


def write_version(
    storage: Storage,
    version: str,
    users: Sequence[str],
    items: Sequence[str],
    *,
    k: int = 5,
    size: int = 8,
    part_rows: int = 20_000,
    similarity: str = "cosine",
) -> StoredCandidates:
    """Store a version whose vectors and lists are drawn anew for each version."""
    rng = np.random.default_rng(int(version))
    prefix = f"two-tower/{version}/candidates"
    parts: dict[str, list[dict[str, Any]]] = {"item_embeddings": [], "user_embeddings": [], "recommendations": []}

    def write(folder: str, table: pa.Table) -> None:
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, row_group_size=5000)
        data = buffer.getvalue().to_pybytes()
        name = f"part-{len(parts[folder]):06d}-000.parquet"
        storage.write_bytes(f"{prefix}/{folder}/{name}", data)
        sha256 = hashlib.sha256(data).hexdigest()
        parts[folder].append({"name": name, "rows": table.num_rows, "bytes": len(data), "sha256": sha256})

    for ids in _chunks(items, part_rows):
        write("item_embeddings", pa.table([ids, _vectors(rng, len(ids), size)], schema=ITEM_EMBEDDINGS))
    named = np.asarray(items)
    for ids in _chunks(users, part_rows):
        write("user_embeddings", pa.table([ids, _vectors(rng, len(ids), size)], schema=USER_EMBEDDINGS))
        first = rng.integers(len(items), size=len(ids))
        lists = named[(first[:, None] + np.arange(k)) % len(items)]
        scores = np.sort(rng.random((len(ids), k), np.float32), axis=1)[:, ::-1]
        columns = [ids, _lists(lists), _lists(scores), ["model"] * len(ids)]
        write("recommendations", pa.table(columns, schema=RECOMMENDATIONS))
    manifest = {
        "version": version,
        "k": k,
        "items": len(items),
        "users": len(users),
        "similarity": similarity,
        "embedding_size": size,
        "parts": parts,
    }
    list_names = json.dumps(manifest).encode()
    storage.write_bytes(f"{prefix}/manifest.json", list_names)
    metadata = {"run_id": f"run-{version}", "metrics": {"model": {"recall@10": 0.25}}, "settings_hash": "ab" * 32}
    files = {"weights.safetensors": NO_WEIGHTS, "metadata.json": json.dumps(metadata).encode()}
    sums = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    files["manifest.json"] = json.dumps({"format_version": 1, "version": version, "files": sums}).encode()
    for name, data in files.items():
        storage.write_bytes(f"two-tower/{version}/{name}", data)
    return StoredCandidates(prefix, parse_manifest(list_names, prefix))


def write_search(
    storage: Storage, version: str, source: str, fields: Sequence[str], rows: Mapping[str, Sequence[list[float] | None]]
) -> None:
    """Add vectors of a search view to a stored version. rows: item -> its vector for each field, or null."""
    prefix = f"two-tower/{version}/candidates"
    vectors = {name: pa.array([row[place] for row in rows.values()], VECTORS) for place, name in enumerate(fields)}
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"item_id": pa.array(list(rows)), **vectors}), buffer)
    storage.write_bytes(f"{prefix}/search/{source}/part-000000-000.parquet", buffer.getvalue().to_pybytes())
    manifest = json.loads(storage.read_bytes(f"{prefix}/manifest.json"))
    manifest["parts"][f"search/{source}"] = [{"name": "part-000000-000.parquet", "rows": len(rows)}]
    sizes = {name: next(len(row[place]) for row in rows.values() if row[place]) for place, name in enumerate(fields)}
    manifest.setdefault("search", {})[source] = {"vectors": sizes, "encoder": "transformers:some"}
    storage.write_bytes(f"{prefix}/manifest.json", json.dumps(manifest).encode())


def search_view(folder: Path, source: str, fields: Sequence[str], *, stamped: bool = True, **vector: Any) -> Any:
    """Return a view of items that is searched, of the name of its push source; Feast makes one field an index.

    stamped: it has `model_version`.
    """
    from datetime import timedelta

    from feast import Entity, FeatureView, Field, FileSource, PushSource, ValueType
    from feast.types import Array, Float32, String

    stamp = {"model_version": pa.string()} if stamped else {}
    kinds = {"item_id": pa.string(), **dict.fromkeys(fields, VECTORS), **stamp}
    path = folder / f"{source}.parquet"
    pq.write_table(pa.schema([*kinds.items(), ("event_timestamp", pa.timestamp("us", "UTC"))]).empty_table(), path)
    vector = {"vector_index": True, "vector_search_metric": "cosine", **vector}
    return FeatureView(
        name=source,
        entities=[Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)],
        ttl=timedelta(0),
        schema=[
            Field(name="item_id", dtype=String),
            *(Field(name=name, dtype=Array(Float32), **(vector if name == fields[0] else {})) for name in fields),
            *(Field(name=name, dtype=String) for name in stamp),
        ],
        source=PushSource(
            name=source,
            batch_source=FileSource(name=f"{source}_file", path=str(path), timestamp_field="event_timestamp"),
        ),
    )


def write_feast_repo(folder: Path, online_store: dict[str, Any], *, metric: str = "cosine") -> None:
    """Apply the views that a run pushes to, in a Feast repository with the given online store."""
    from datetime import timedelta

    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, ValueType
    from feast.types import Array, Float32, String

    folder.mkdir(parents=True)
    settings = {
        "project": "shop",
        "provider": "local",
        "registry": "registry.db",
        "offline_store": {"type": "duckdb"},
        "online_store": online_store,
        "entity_key_serialization_version": 3,
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    entities = {
        name: Entity(name=name, join_keys=[f"{name}_id"], value_type=ValueType.STRING) for name in ("user", "item")
    }

    def view(name: str, entity: str, source: str, fields: dict[str, Any], **vector: Any) -> FeatureView:
        names = {f"{entity}_id": String, **fields, "model_version": String}
        kinds = {**dict.fromkeys(names, pa.string()), "event_timestamp": pa.timestamp("us", "UTC")}
        kinds |= {
            field: pa.list_(pa.string() if kind == Array(String) else pa.float32()) for field, kind in fields.items()
        }
        path = folder / f"{name}.parquet"
        pq.write_table(pa.schema(list(kinds.items())).empty_table(), path)
        batch = FileSource(name=f"{name}_file", path=str(path), timestamp_field="event_timestamp")
        schema = [
            Field(name=field, dtype=kind, **(vector if field == "embedding" else {})) for field, kind in names.items()
        ]
        return FeatureView(
            name=name,
            entities=[entities[entity]],
            ttl=timedelta(0),
            schema=schema,
            source=PushSource(name=source, batch_source=batch),
        )

    vector = {"vector_index": True, "vector_search_metric": metric}
    lists = {"top_k_item_ids": Array(String), "top_k_scores": Array(Float32)}
    views = [
        view("item_embedding", "item", "item_embed_push_source", {"embedding": Array(Float32)}, **vector),
        view("user_embedding", "user", "user_embed_push_source", {"embedding": Array(Float32)}, **vector),
        view("user_items", "user", "user_items_push_source", lists),
    ]
    FeatureStore(repo_path=str(folder)).apply([*entities.values(), *views])


def _chunks(ids: Sequence[str], rows: int) -> Iterable[Sequence[str]]:
    return (ids[start : start + rows] for start in range(0, len(ids), rows))


def _vectors(rng: np.random.Generator, rows: int, size: int) -> pa.Array:
    vectors = rng.normal(size=(rows, size)).astype(np.float32)
    return _lists(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _lists(rows: Any) -> pa.Array:
    """Return the rows of a matrix as lists."""
    flat = np.ascontiguousarray(rows).reshape(-1)
    values = pa.array(flat.tolist(), pa.string()) if flat.dtype.kind == "U" else pa.array(flat)
    offsets = pa.array(np.arange(0, flat.size + 1, rows.shape[1]), pa.int32())
    return pa.ListArray.from_arrays(offsets, values)
