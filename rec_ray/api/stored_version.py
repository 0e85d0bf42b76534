"""A version in the object store with its candidates: model, item vectors, and the stored lists of users.

Input: the address of a store and a version. Output: checked parts, each of which belongs to the same version.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pydantic import ValidationError

from rec_ray.api.frames import Frame, id_column, require_names, to_table
from rec_ray.api.item_vectors import ItemVectors
from rec_ray.candidate_store.increments import increments_folder, published_increments
from rec_ray.candidate_store.manifest import (
    ITEM_FOLDER,
    RECOMMENDATION_FOLDER,
    CandidatesManifest,
    parts_of,
    read_manifest,
)
from rec_ray.candidate_store.parts import StoredCandidates
from rec_ray.config import CandidateSettings, InteractionSettings, Section
from rec_ray.errors import ConfigError, DataError, list_names
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.schema import EMBEDDING, ITEM_ID, ITEM_IDS, METHOD, MODEL_VERSION, SCORES, USER_ID
from rec_ray.storage.live_pointer import read_live, read_withdrawn
from rec_ray.storage.model_store import candidates_folder, load_model
from rec_ray.storage.object_store import Storage, open_storage

LIVE = "live"
SETTINGS_FILE = "rec_ray.yaml"
"""File in the folder of a project; `config.loading` reads it and other sources of settings."""
_S = TypeVar("_S", bound=Section)


@dataclass(frozen=True)
class StoredVersion:
    """A stored version whose candidates are complete.

    settings, meaning: the settings of the training. withdrawn: items that its publication left out.
    """

    storage: Storage
    version: str
    bundle: TwoTowerBundle
    manifest: CandidatesManifest
    settings: CandidateSettings
    meaning: InteractionSettings
    withdrawn: tuple[str, ...]

    def vectors(self) -> ItemVectors:
        """Read the item vectors; each part is compared with its sum.

        Raises:
            DataError: a part is missing or was changed.
        """
        folder, tables = candidates_folder(self.version), []
        for part in parts_of(self.manifest, ITEM_FOLDER):
            key = f"{folder}/{ITEM_FOLDER}/{part.name}"
            data = self.storage.read_bytes(key)
            if part.sha256 is not None and hashlib.sha256(data).hexdigest() != part.sha256:
                raise DataError(
                    f"candidates are damaged: {self.storage.uri(key)} does not have the SHA-256 sum of the manifest; "
                    f"run rec-ray candidates {self.version} again"
                )
            tables.append(pq.read_table(pa.BufferReader(data), columns=[ITEM_ID, EMBEDDING]))
        if not tables:
            raise DataError(f"version {self.version} has no item vectors; run rec-ray candidates {self.version}")
        table = pa.concat_tables(tables).combine_chunks()
        ids, vectors = (table[name].combine_chunks() for name in (ITEM_ID, EMBEDDING))
        return ItemVectors.of(self.bundle, ids.cast(pa.string()), vectors)

    def given_vectors(self, frame: Frame) -> ItemVectors:
        """Return item vectors of the caller, after checking that each row is stamped with this version.

        Raises:
            DataError: a row has another version or none.
        """
        what = "item_vectors"
        table = to_table(frame, what)
        remedy = "a column of that name; rename it"
        require_names(table, {ITEM_ID: remedy, EMBEDDING: remedy, MODEL_VERSION: remedy}, what)
        found = pc.unique(table[MODEL_VERSION].cast(pa.string())).to_pylist()
        if found != [self.version]:
            raise DataError(
                f"item_vectors are of the versions {list_names(found)}, the model is version {self.version}; vectors "
                "of two versions cannot be compared: open their version, or read the vectors again"
            )
        return ItemVectors.of(self.bundle, id_column(table, ITEM_ID, what), table[EMBEDDING].combine_chunks())

    def is_live(self) -> bool:
        """Return whether the store names this version as live."""
        return read_live(self.storage) == self.version

    def user_list(self, user_id: str) -> tuple[list[str], list[float], str]:
        """Return item ids, scores and method of the newest published list of a user.

        Raises:
            DataError: there is none.
        """
        increments = increments_folder(self.version)
        newer = [f"{increments}/{name}" for name in reversed(published_increments(self.storage, increments))]
        for prefix in [*newer, candidates_folder(self.version)]:
            manifest = self.manifest if prefix == candidates_folder(self.version) else None
            found = self._first_row(prefix, manifest, ds.field(USER_ID) == user_id)
            if found is not None:
                return found
        raise DataError(f"version {self.version} has no list for user {user_id!r}; give the user's history instead")

    def popular_list(self) -> tuple[list[str], list[float]]:
        """Return the list of a user of whom nothing was known, or nothing if the version has none."""
        if not self.manifest.facts.get("popularity_lists"):
            return [], []
        found = self._first_row(candidates_folder(self.version), self.manifest, ds.field(METHOD) == "popularity")
        return ([], []) if found is None else found[:2]

    def _first_row(
        self, prefix: str, manifest: CandidatesManifest | None, condition: Any
    ) -> tuple[list[str], list[float], str] | None:
        candidates = StoredCandidates(prefix, manifest or read_manifest(self.storage, prefix))
        paths = candidates.paths(self.storage, RECOMMENDATION_FOLDER)
        if not paths:
            return None
        lists = ds.dataset(paths, format="parquet", filesystem=self.storage.filesystem)
        row = lists.head(1, columns=[ITEM_IDS, SCORES, METHOD], filter=condition).to_pylist()
        return (row[0][ITEM_IDS], row[0][SCORES], row[0][METHOD]) if row else None


def open_version(url: str, version: str, **storage: Any) -> StoredVersion:
    """Load the model of a version and the manifest of its candidates. storage: arguments of `open_storage`.

    Raises:
        ConfigError: the address is no object store.
        DataError: no version is live, or the candidates are missing or those of another version.
        BundleError: the version does not exist or is damaged.
        StorageError: the store cannot be read.
    """
    store = open_storage(url, **storage)
    if store.is_folder and store.size(SETTINGS_FILE) is not None:
        raise ConfigError(f"{url} is the folder of a project; open its object store (storage.url), usually {url}/store")
    version = read_live(store) if version == LIVE else version
    bundle = load_model(version, store).without_evaluated()
    folder = candidates_folder(version)
    manifest = read_manifest(store, folder)
    facts = {
        "version": (manifest.version, version),
        "embedding_size": (manifest.embedding_size, bundle.embedding_size),
        "similarity": (manifest.similarity, bundle.similarity),
    }
    for name, (found, expected) in facts.items():
        if found != expected:
            raise DataError(
                f"the candidates in {store.uri(folder)} have {name} {found}, the model has {expected}; vectors of two "
                f"versions cannot be compared: run rec-ray candidates {version}"
            )
    settings = bundle.metadata.get("settings") or {}
    return StoredVersion(
        store,
        version,
        bundle,
        manifest,
        _section(CandidateSettings, settings.get("candidates"), version),
        _section(InteractionSettings, (settings.get("features") or {}).get("interaction"), version),
        read_withdrawn(store, version),
    )


def _section(section: type[_S], values: dict[str, Any] | None, version: str) -> _S:
    """Return a section of the settings that are stored with a version."""
    try:
        return section.model_validate(values or {})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise DataError(
            f"version {version} was trained with a setting that this program does not read: "
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}; use the rec_ray that trained it, or train again"
        ) from None
