"""A model that `fit` trained: metrics, recommendations, and a store that `Recommender.open` reads.

Input: trained towers with their encoded tables. Output: metrics, lists, files. The class needs neither Ray nor Feast.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from rec_ray.api.frames import Frame
from rec_ray.api.held_out_metrics import HeldOutMetrics, measure_held_out
from rec_ray.api.item_vectors import ItemVectors
from rec_ray.api.list_builders import AS_TRAINED, FilterChoice
from rec_ray.api.recommendation import POPULARITY, Recommendation
from rec_ray.api.recommender import Recommender
from rec_ray.api.training_tables import EncodedTables
from rec_ray.candidate_store.manifest import (
    ITEM_FOLDER,
    RECOMMENDATION_FOLDER,
    USER_FOLDER,
    CandidatesManifest,
    Part,
    new_generation,
    write_manifest,
)
from rec_ray.config import Settings
from rec_ray.contracts import TrainedModel
from rec_ray.errors import ConfigError
from rec_ray.retrieval.features.catalogue import Catalogue
from rec_ray.retrieval.features.timelines import Timelines
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.retrieval.model.inference import embed_catalogue
from rec_ray.retrieval.ragged import lists_of
from rec_ray.schema import ITEM_EMBEDDINGS, RECOMMENDATIONS, USER_EMBEDDINGS
from rec_ray.storage.live_pointer import write_live
from rec_ray.storage.model_store import candidates_folder, save_model, stored_versions
from rec_ray.storage.object_store import open_storage

UNSAVED = "unsaved"
"""Version of a model that was not saved."""


class FittedModel:
    """A trained model in memory.

    bundle: the towers for recommendations, refitted with all events. evaluated: the towers before the refit, to which
    the metrics belong. settings: all settings of the fit.
    """

    def __init__(self, trained: TrainedModel, encoded: EncodedTables, settings: Settings, items: pa.Table) -> None:
        """items: raw fields of items, for filters."""
        self.evaluated, self.settings = trained.bundle, settings
        self.bundle: TwoTowerBundle = trained.published
        self.epochs = trained.epochs
        self._encoded, self._items = encoded, items

    @cached_property
    def recommender(self) -> Recommender:
        """The model as a `Recommender`; users are given by their history, or by the id of a user of the fit."""
        catalogue = Catalogue.from_table(self._encoded.catalogue_now, self.bundle.preprocessor.items.shape)
        matrix = embed_catalogue(self.bundle.model, catalogue)[1:].numpy()
        lists = lists_of(np.full(len(matrix), matrix.shape[1]), matrix.reshape(-1), pa.float32())
        vectors = ItemVectors.of(self.bundle.without_evaluated(), catalogue.item_ids, lists)
        return Recommender(
            self.bundle.without_evaluated(),
            UNSAVED,
            vectors,
            self.settings.candidates,
            self.settings.features.interaction,
            items=self._items,
            positives=catalogue.count[1:],
        )

    @cached_property
    def _timelines(self) -> Timelines:
        return Timelines.from_table(self._encoded.timelines, self.bundle.preprocessor.users.shape)

    @cached_property
    def _users(self) -> dict[str, int]:
        return {user: place for place, user in enumerate(self._timelines.user_ids.to_pylist())}

    def evaluate(self) -> HeldOutMetrics:
        """Return the metrics on the held-out events of the model before its refit, beside counting baselines.

        Filters, diversity and shares of new items are not applied. Without any held-out event the metrics are empty.
        """
        catalogue = Catalogue.from_table(self._encoded.catalogue, self.bundle.preprocessor.items.shape)
        return measure_held_out(
            self._timelines,
            catalogue,
            self.evaluated,
            self.settings.evaluation.ks,
            exclude_seen=self.settings.candidates.exclude_seen,
        )

    def recommend(
        self,
        *,
        history: Sequence[str | int] | Frame | None = None,
        user_id: str | int | None = None,
        features: Mapping[str, Any] | None = None,
        k: int = 10,
        exclude: Sequence[str | int] = (),
        filters: FilterChoice = AS_TRAINED,
        timezone: str | None = None,
    ) -> Recommendation:
        """Recommend to a user of the fit, or to one with another history; arguments as in `Recommender.recommend`.

        Raises:
            ConfigError: an argument is wrong, or the fit has no such user.
            DataError: the history cannot be read.
        """
        if user_id is None:
            return self.recommender.recommend(
                history=history, features=features, k=k, exclude=exclude, filters=filters, timezone=timezone
            )
        if history is not None or features is not None:
            raise ConfigError("user_id stands for the user's own history and features; leave them out")
        if str(user_id) not in self._users:
            raise ConfigError(f"the fit has no user {str(user_id)!r}; is the id right? Otherwise give a history")
        place = self._users[str(user_id)]
        return self.recommender.recommend_timelines(
            self._encoded.timelines.slice(place, 1), k=k, exclude=exclude, filters=filters
        )[0]

    def similar(self, item_id: str | int, k: int = 10) -> Recommendation:
        """Return the `k` nearest items of an item; see `Recommender.similar`.

        Raises:
            DataError: there is no such item.
        """
        return self.recommender.similar(item_id, k)

    def save(self, url: str, version: str | int | None = None, **storage: Any) -> str:
        """Store the model, its item vectors and the lists of all users as a live version; return the version.

        Args:
            url: folder or `s3://bucket/prefix`; not the store of a project, whose database numbers the versions.
            version: number of the version; default: the next one.
            storage: `endpoint`, `region`, `ca_bundle`, `access_key` and `secret_key`, as in `Recommender.open`.

        Raises:
            ConfigError: the store belongs to a project.
            BundleError: the version exists with other content.
            StorageError: the store cannot be written.
        """
        store = open_storage(url, **storage)
        if store.exists("runs"):
            raise ConfigError(f"{store.uri()} is the store of a project, whose database names versions; save elsewhere")
        numbers = [int(name) for name in stored_versions(store) if name.isdecimal()]
        name = str(max(numbers, default=0) + 1) if version is None else str(version)
        bundle = dataclasses.replace(self.bundle, metadata={**self.bundle.metadata, "metrics": self.evaluate().metrics})
        save_model(bundle, name, store)
        prefix, generation = candidates_folder(name), new_generation()
        parts: dict[str, tuple[Part, ...]] = {}
        tables = self._candidates()
        for folder, table in tables.items():
            buffer = pa.BufferOutputStream()
            pq.write_table(table, buffer)
            data = buffer.getvalue().to_pybytes()
            part = Part(
                f"{generation}/part-000000-000.parquet", table.num_rows, len(data), hashlib.sha256(data).hexdigest()
            )
            store.write_checked(f"{prefix}/{folder}/{part.name}", data)
            parts[folder] = (part,)
        lists = tables[RECOMMENDATION_FOLDER]
        manifest = CandidatesManifest(
            version=name,
            parts=parts,
            as_of=self._encoded.times.as_of,
            k=self.settings.candidates.k,
            items=tables[ITEM_FOLDER].num_rows,
            users=lists.num_rows,
            similarity=bundle.similarity,
            embedding_size=bundle.embedding_size,
            generation=generation,
            facts={"popularity_lists": lists["method"].to_pylist().count(POPULARITY)},
        )
        write_manifest(store, prefix, manifest)
        write_live(store, name)
        return name

    def _candidates(self) -> dict[str, pa.Table]:
        """Return item vectors, user vectors and the lists of all users, as the candidates step stores them."""
        vectors = self.recommender.item_vectors
        found = self.recommender.recommend_timelines(self._encoded.timelines, k=self.settings.candidates.k)
        users = self._timelines.user_ids
        embedded = self.recommender.embed_timelines(self._timelines)
        lengths = np.array([len(each) for each in found], np.int64)
        ids = pa.array([item for each in found for item in each.item_ids], pa.string())
        scores = np.array([score for each in found for score in each.scores], np.float32)
        return {
            ITEM_FOLDER: pa.table([vectors.item_ids, _lists(vectors.matrix[1:])], schema=ITEM_EMBEDDINGS),
            USER_FOLDER: pa.table([users, _lists(embedded)], schema=USER_EMBEDDINGS),
            RECOMMENDATION_FOLDER: pa.table(
                [
                    users,
                    lists_of(lengths, ids, pa.string()),
                    lists_of(lengths, scores, pa.float32()),
                    pa.array([each.method for each in found]),
                ],
                schema=RECOMMENDATIONS,
            ),
        }


def _lists(matrix: npt.NDArray[np.float32]) -> pa.Array:
    return lists_of(np.full(len(matrix), matrix.shape[1]), matrix.reshape(-1), pa.float32())
