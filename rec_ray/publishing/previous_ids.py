"""Ids already pushed from candidates that are about to be replaced.

Input: stored candidates. Their ids are written beside the version, as candidates that contain ids alone, so that the
next push empties the rows of ids that the new candidates lack. The module uses neither Feast nor the database.
"""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq

from rec_ray.candidate_store.increments import increments_folder, published_increments
from rec_ray.candidate_store.manifest import TIMELINE_FOLDER, CandidatesManifest, Part, read_manifest, write_manifest
from rec_ray.candidate_store.parts import READ_ROWS, StoredCandidates, readable_paths
from rec_ray.errors import DataError
from rec_ray.logs import LOGGER
from rec_ray.schema import ITEM_ID, USER_ID
from rec_ray.storage.model_store import candidates_folder, model_folder
from rec_ray.storage.object_store import Storage


def replaced_folder(version: str) -> str:
    """Return the key of the folder with the ids of replaced candidates of a version."""
    return f"{model_folder(version)}/replaced"


def pushed_candidates(storage: Storage, version: str) -> list[StoredCandidates]:
    """Return the candidates of a version that may have rows in the feature store; damaged ones are logged."""
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
            LOGGER.warning("version %s: %s; ids that departed since then stay in the feature store", version, error)
    return found


def note_replaced(storage: Storage, version: str) -> None:
    """Write the ids of the candidates and the published increments of a version, which are about to be replaced.

    Unreadable parts are left out with a warning, because recomputing the candidates is how damage is repaired.

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
    """Copy the ids of all readable parts, one part at a time; write the manifest last."""
    parts: dict[str, tuple[Part, ...]] = {}
    for folder in sorted({*candidates.manifest.parts} - {TIMELINE_FOLDER}):
        paths, _ = readable_paths(storage, candidates, folder)
        for number, path in enumerate(paths):
            buffer, rows = pa.BufferOutputStream(), 0
            with storage.filesystem.open_input_file(path) as handle:
                file = pq.ParquetFile(handle)
                key = USER_ID if USER_ID in file.schema_arrow.names else ITEM_ID
                with pq.ParquetWriter(buffer, pa.schema([file.schema_arrow.field(key)])) as writer:
                    try:
                        for batch in file.iter_batches(batch_size=READ_ROWS, columns=[key]):
                            writer.write_batch(batch)
                            rows += batch.num_rows
                    except (OSError, pa.ArrowException) as error:
                        LOGGER.warning("%s cannot be read after %s rows: %s", path, f"{rows:,}", error)
            data, name = buffer.getvalue().to_pybytes(), f"part-{number:06d}.parquet"
            storage.write_bytes(f"{prefix}/{folder}/{name}", data)
            part = Part(name, rows, len(data), hashlib.sha256(data).hexdigest())
            parts[folder] = (*parts.get(folder, ()), part)
    manifest = CandidatesManifest(candidates.version, parts, format_version=1)
    write_manifest(storage, prefix, manifest)
