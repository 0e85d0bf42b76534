"""Who is in the feature store by candidates that are computed anew: noted before the old ones go.

Stored candidates come in; their ids are written beside the version, in the form of candidates of nothing but ids, so
that who is not among the new ones gets an empty row when these are pushed. It knows neither Feast nor the database.
"""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq

from rec_ray.candidate_store.increments import increments_folder, published_increments
from rec_ray.candidate_store.manifest import MANIFEST, read_manifest
from rec_ray.candidate_store.parts import READ_ROWS, StoredCandidates
from rec_ray.errors import DataError
from rec_ray.logs import LOGGER
from rec_ray.schema import ITEM_ID, USER_ID
from rec_ray.storage.model_store import candidates_folder, model_folder
from rec_ray.storage.object_store import Storage


def replaced_folder(version: str) -> str:
    """Return the key below which the ids of replaced candidates of a version lie."""
    return f"{model_folder(version)}/replaced"


def pushed_candidates(storage: Storage, version: str) -> list[StoredCandidates]:
    """Return the candidates of a version of which the feature store may hold rows; one that is not whole is said."""
    increments, replaced = increments_folder(version), replaced_folder(version)
    prefixes = [
        candidates_folder(version),
        *(f"{increments}/{name}" for name in published_increments(storage, increments)),
        *(f"{replaced}/{name}" for name in storage.folders(replaced)),
    ]
    found = []
    for prefix in prefixes:
        try:
            found.append(StoredCandidates(prefix, read_manifest(storage, prefix)))
        except DataError as error:
            LOGGER.warning("version %s: %s; who left since then stays in the feature store", version, error)
    return found


def note_replaced(storage: Storage, version: str) -> None:
    """Write down who is in the candidates and the published increments of a version, which are about to be replaced.

    Raises:
        StorageError: the store cannot be read or written.
    """
    noted = replaced_folder(version)
    number = len(storage.folders(noted))
    for candidates in pushed_candidates(storage, version):
        if not candidates.prefix.startswith(f"{noted}/"):
            _write_ids(storage, candidates, f"{noted}/{number:06d}")
            number += 1


def _write_ids(storage: Storage, candidates: StoredCandidates, prefix: str) -> None:
    """Copy the ids of all parts, a part at a time; the manifest comes last."""
    parts: dict[str, list[dict[str, object]]] = {}
    for folder in candidates.manifest["parts"]:
        parts[folder] = []
        for path, part in zip(candidates.paths(storage, folder), candidates.parts(folder), strict=True):
            buffer = pa.BufferOutputStream()
            with storage.filesystem.open_input_file(path) as handle:
                file = pq.ParquetFile(handle)
                key = USER_ID if USER_ID in file.schema_arrow.names else ITEM_ID
                with pq.ParquetWriter(buffer, pa.schema([file.schema_arrow.field(key)])) as writer:
                    for batch in file.iter_batches(batch_size=READ_ROWS, columns=[key]):
                        writer.write_batch(batch)
            storage.write_bytes(f"{prefix}/{folder}/{part['name']}", buffer.getvalue().to_pybytes())
            parts[folder].append({"name": part["name"], "rows": part["rows"]})
    manifest = {"version": candidates.version, "parts": parts}
    storage.write_bytes(f"{prefix}/{MANIFEST}", json.dumps(manifest).encode())
