"""Recommendations from a stored version in any process: for users whom the batch never saw, and for known ones.

Input: the object store of a project and a version. Output: lists of item ids, similar items and vectors. The lists of a
history equal those of the candidates step. The module uses neither Ray nor Feast nor a database.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from rec_ray.api.frames import Frame, id_column, require_names, to_table
from rec_ray.api.history import HistoryReader
from rec_ray.api.item_vectors import ItemVectors, embed_item_rows
from rec_ray.api.list_builders import AS_TRAINED, FilterChoice, ListBuilders
from rec_ray.api.recommendation import MODEL, POPULARITY, Recommendation
from rec_ray.api.stored_version import StoredVersion, open_version
from rec_ray.config import CandidateSettings, InteractionSettings
from rec_ray.errors import ConfigError, DataError
from rec_ray.retrieval.features.timelines import Timelines, query_batch
from rec_ray.retrieval.lists.item_filters import raw_columns
from rec_ray.retrieval.lists.popularity import unknown_users
from rec_ray.retrieval.metrics.list_ranker import seen_events
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.retrieval.model.inference import embed_queries, seen_items
from rec_ray.retrieval.search import Exclusions
from rec_ray.schema import ITEM_ID, RAW_NOW, QueryTime, Split

Array = npt.NDArray[Any]
ALL_EVENTS = Split.TEST + 1
"""Split label above all others: every event is history."""
FEWEST_ROWS = 16
"""Rows from which torch's matrix products round each row as in a batch of thousands; see `retrieval.search.exact`."""


class Recommender:
    """A model version with its item vectors; all methods may be called from several threads.

    version: its number. item_ids: the items that it can recommend, sorted. similarity: `cosine` or `dot`.
    """

    def __init__(
        self,
        bundle: TwoTowerBundle,
        version: str,
        vectors: ItemVectors,
        settings: CandidateSettings,
        meaning: InteractionSettings,
        *,
        items: pa.Table | None = None,
        withdrawn: Sequence[str] = (),
        stored: StoredVersion | None = None,
        positives: Array | None = None,
    ) -> None:
        """Build it from loaded parts; `Recommender.open` reads them from an object store.

        items: raw fields of items for filters, with `item_id`. withdrawn: items that are in no list. stored: reader of
        the lists in the object store. positives: [n] positive events of each item, for users of whom nothing is known;
        None takes such a list from `stored`.
        """
        self._bundle, self.version, self._vectors = bundle, version, vectors
        self.settings, self._stored = settings, stored
        self.item_ids: pa.Array = vectors.item_ids
        time_gaps = bool(bundle.arguments.get("time_gaps"))
        self._reader = HistoryReader(bundle.preprocessor, meaning, vectors.rows, time_gaps)
        self._builders = ListBuilders(bundle, vectors, settings, items, withdrawn)
        self._lock = threading.Lock()
        self._popular: tuple[Array, Array] | None = None
        if positives is not None:
            places = np.argsort(-positives, kind="stable")
            self._popular = places, (positives / max(1, positives.sum())).astype(np.float32)[places]

    @classmethod
    def open(
        cls,
        url: str,
        version: str | int = "live",
        *,
        items: Frame | None = None,
        item_vectors: Frame | None = None,
        endpoint: str | None = None,
        region: str = "us-east-1",
        ca_bundle: str | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
    ) -> Recommender:
        """Load a version with its candidates from an object store.

        Args:
            url: object store of a project: a folder or `s3://bucket/prefix`, as in `storage.url`.
            version: a version number, or `live` for the version that was published last.
            items: table with `item_id` and the fields that the filters of the version read; only for versions with
                filters on item fields.
            item_vectors: table with `item_id`, `embedding` and `model_version`, such as rows of the online store, to
                search instead of the stored vectors.
            endpoint, region, ca_bundle, access_key, secret_key: of an S3 server, as in the section `storage`; without
                keys the AWS ones of the environment are used.

        Raises:
            DataError: no version is live, or the version has no complete candidates.
            BundleError: the version does not exist or is damaged.
            ConfigError: the version filters by item fields and `items` lacks them.
            StorageError: the store cannot be read.
        """
        stored = open_version(
            url,
            str(version),
            endpoint=endpoint,
            region=region,
            ca_bundle=ca_bundle,
            access_key=access_key,
            secret_key=secret_key,
        )
        vectors = stored.vectors() if item_vectors is None else stored.given_vectors(item_vectors)
        table = None if items is None else to_table(items, "items")
        if table is not None:
            require_names(table, {ITEM_ID: "a column of that name; rename it"}, "items")
        return cls(
            stored.bundle,
            stored.version,
            vectors,
            stored.settings,
            stored.meaning,
            items=table,
            withdrawn=stored.withdrawn,
            stored=stored,
        )

    @property
    def item_vectors(self) -> ItemVectors:
        """The item vectors that are searched."""
        return self._vectors

    @property
    def similarity(self) -> str:
        """Similarity of user and item vectors, `cosine` or `dot`."""
        return self._bundle.similarity

    @property
    def embedding_size(self) -> int:
        """Dimensions of user and item vectors."""
        return self._bundle.embedding_size

    def is_live(self) -> bool:
        """Return whether the object store still names this version as live; one small read.

        Raises:
            ConfigError: the model was not opened from an object store.
            StorageError, DataError: the store cannot be read.
        """
        if self._stored is None:
            raise ConfigError("this model was not opened from an object store; use Recommender.open")
        return self._stored.is_live()

    def warm_up(self) -> None:
        """Compile the search and evaluate the filters, so that the first request is as fast as the others.

        Raises:
            ConfigError: the filters read item fields that were not given.
        """
        self._vectors.index.search(np.zeros((1, self.embedding_size), np.float32), 10)
        self.embed_timelines(self._reader.read(None, None)[0])
        self._builders.get(AS_TRAINED, datetime.now(UTC))

    def recommend(
        self,
        *,
        history: Sequence[str | int] | Frame | None = None,
        user_id: str | int | None = None,
        features: Mapping[str, Any] | None = None,
        k: int = 10,
        exclude: Sequence[str | int] = (),
        filters: FilterChoice = AS_TRAINED,
        now: datetime | None = None,
        timezone: str | None = None,
    ) -> Recommendation:
        """Recommend up to `k` items, best first; fewer if fewer items are eligible.

        Args:
            history: the user's events: item ids, oldest first; or a table with `item_id` and optionally
                `event_timestamp`, `event_type` and `event_value`. Items outside the catalogue are skipped. Items of the
                history are not recommended, unless the version's settings allow it.
            user_id: a user of the batch instead of a history; the stored list is returned.
            features: the user's features by name; a missing one is unknown.
            k: length of the list.
            exclude: further ids that are not recommended; unknown ones are ignored.
            filters: `as_trained` for the filters in the settings of the version, None for none, or other filters with
                the keys of `candidates.filters`.
            now: time for filters with times; default: the current time.
            timezone: zone of times without one in the history.

        A user without any known event and feature gets the list of popular items, as in the batch, if the version has
        stored one; else the model's list for an empty history.

        Raises:
            ConfigError: an argument is wrong.
            DataError: the history cannot be read, or the batch has no list of the user.
        """
        k = _length(k)
        if isinstance(exclude, str):
            raise ConfigError(f"exclude is the text {exclude!r}; give a list of ids")
        if user_id is not None:
            if history is not None or features is not None or filters != AS_TRAINED:
                raise ConfigError("user_id takes the stored list; leave out history, features and filters")
            return self._stored_list(str(user_id), k, exclude)
        now = now or datetime.now(UTC)
        settings, chosen = self.settings, self._builders.choose(filters)
        timelines, raw = self._reader.read(
            history,
            features,
            further_fields=[*chosen.user_fields, *([settings.segment] if settings.segment else [])],
            timezone=timezone,
            needs_times=settings.exclude_seen and chosen.seen_days is not None,
        )
        users = raw_columns(raw, "", [*chosen.user_fields])
        return self._recommend(timelines, users, k, exclude, filters, now)[0]

    def recommend_timelines(
        self,
        table: pa.Table,
        *,
        k: int = 10,
        exclude: Sequence[str | int] = (),
        filters: FilterChoice = AS_TRAINED,
        now: datetime | None = None,
    ) -> list[Recommendation]:
        """Return the list of each of many users. table: rows of `TIMELINES` with the raw fields that filters read.

        Raises:
            ConfigError: an argument is wrong.
            SchemaError: a raw field is missing.
        """
        fields = [*self._builders.choose(filters).user_fields]
        found: list[Recommendation] = []
        for start in range(0, table.num_rows, self.settings.batch_size):
            block = table.slice(start, self.settings.batch_size)
            timelines = Timelines.from_table(block, self._bundle.preprocessor.users.shape)
            users = raw_columns(block, RAW_NOW, fields)
            found += self._recommend(timelines, users, k, exclude, filters, now or datetime.now(UTC))
        return found

    def _recommend(
        self,
        timelines: Timelines,
        users: dict[str, pa.Array],
        k: int,
        exclude: Sequence[str | int],
        filters: FilterChoice,
        now: datetime,
    ) -> list[Recommendation]:
        settings, n = self.settings, len(timelines)
        chosen, builder = self._builders.choose(filters), self._builders.get(filters, now)
        forbidden = self._vectors.places([*map(str, exclude)])
        seen, offsets = np.zeros(0, np.int64), np.zeros(n + 1, np.int64)
        if settings.exclude_seen:
            types, since = seen_events(chosen, self._bundle, now)
            seen, offsets = seen_items(timelines, np.arange(n), ALL_EVENTS, types, since)
            seen = seen - 1
        if len(forbidden):
            seen = np.concatenate([part for own in np.split(seen, offsets[1:-1]) for part in (own, forbidden)])
            offsets = offsets + len(forbidden) * np.arange(n + 1)
        lists = builder.build(self.embed_timelines(timelines), k, (seen, offsets), users)
        unknown = unknown_users(timelines, self._bundle.preprocessor.users, settings.segment)
        popular = self._popular_items() if unknown.any() else None
        found = []
        for place in range(n):
            if unknown[place] and popular is not None:
                own = {name: values.slice(place, 1) for name, values in users.items()}
                mask = builder.filters.groups(own, 1).masks[0].copy()
                mask[forbidden] = False
                kept = mask[popular[0]]
                found.append(self._as_list(popular[0][kept][:k], popular[1][kept][:k], POPULARITY))
            else:
                kept = lists.indices[place] >= 0
                found.append(self._as_list(lists.indices[place][kept], lists.scores[place][kept], MODEL))
        return found

    def similar(self, item_id: str | int, k: int = 10, *, filters: FilterChoice = AS_TRAINED) -> Recommendation:
        """Return the `k` items whose vectors have the largest product with that of an item, best first.

        Only items that may be recommended to some user are returned.

        Raises:
            DataError: the version has no such item.
            ConfigError: an argument is wrong.
        """
        k = _length(k)
        place = self._vectors.places([str(item_id)])
        if not len(place):
            raise DataError(f"version {self.version} has no item {str(item_id)!r}; is the id right?")
        allowed = self._builders.get(filters, datetime.now(UTC)).filters.allowed
        itself = Exclusions(place, np.array([0, 1]))
        found, scores = self._vectors.index.search(self._vectors.matrix[place + 1], k, itself, allowed)
        kept = found[0] >= 0
        return self._as_list(found[0][kept], scores[0][kept], MODEL)

    def embed_user(
        self,
        history: Sequence[str | int] | Frame | None = None,
        features: Mapping[str, Any] | None = None,
        *,
        timezone: str | None = None,
    ) -> npt.NDArray[np.float32]:
        """Return the vector [d] of a user for a vector search over item vectors of the same version.

        Raises:
            ConfigError, DataError: as `recommend`.
        """
        return self.embed_timelines(self._reader.read(history, features, timezone=timezone)[0])[0]

    def embed_items(self, items: Frame) -> npt.NDArray[np.float32]:
        """Return the vectors [n, d] of items, in the order of the rows, also of items that training never saw.

        items: table with `item_id` and every item feature of the model; values may be null.

        Raises:
            SchemaError: a feature is missing or has another type than declared.
            DataError: an id is null.
        """
        table = to_table(items, "items")
        require_names(table, {ITEM_ID: "a column of that name; rename it"}, "items")
        return embed_item_rows(self._bundle, table, id_column(table, ITEM_ID, "items"))

    @torch.inference_mode()
    def embed_timelines(self, timelines: Timelines) -> npt.NDArray[np.float32]:
        """Return the vectors of the users of timelines after all their events: [u, d]."""
        length, n = int(self._bundle.arguments["history_length"]), len(timelines)
        # Few rows are repeated: products of one row and of many round differently. Transformers would take too long.
        repeats = self._bundle.arguments["history"] != "transformer"
        users = np.arange(max(n, FEWEST_ROWS) if repeats and n else n) % max(n, 1)
        query = query_batch(timelines, users, split=ALL_EVENTS, query=QueryTime.NOW, history_length=length)
        vectors: npt.NDArray[np.float32] = embed_queries(self._bundle.model, query, self._vectors.history).numpy()
        return vectors[:n]

    def _as_list(self, places: Array, scores: Array, method: str) -> Recommendation:
        ids = self.item_ids.take(pa.array(places, pa.int64())).to_pylist()
        return Recommendation(self.version, ids, scores.astype(float).tolist(), method)

    def _popular_items(self) -> tuple[Array, Array] | None:
        """Return the items, from 0, and scores of the list of a user of whom nothing is known; None if lists differ."""
        with self._lock:
            if self._popular is None:
                self._popular = np.zeros(0, np.int64), np.zeros(0)
                if self._stored is not None and not self.settings.segment and not self.settings.filters.rules:
                    ids, scores = self._stored.popular_list()
                    places = pc.index_in(pa.array(ids, pa.string()), value_set=self.item_ids)
                    known = places.is_valid().to_numpy(zero_copy_only=False)
                    self._popular = places.drop_null().to_numpy().astype(np.int64), np.array(scores)[known]
            return self._popular if len(self._popular[0]) else None

    def _stored_list(self, user_id: str, k: int, exclude: Sequence[str | int]) -> Recommendation:
        if self._stored is None:
            raise ConfigError("this model has no stored lists; give the user's history")
        if k > self._stored.manifest.k:
            raise ConfigError(f"k is {k}, but the stored lists have {self._stored.manifest.k} items; give a history")
        item_ids, scores, method = self._stored.user_list(user_id)
        hidden = {*map(str, exclude), *self._stored.withdrawn}
        kept = [(item, score) for item, score in zip(item_ids, scores, strict=True) if item not in hidden][:k]
        return Recommendation(self.version, [item for item, _ in kept], [score for _, score in kept], method)


def _length(k: Any) -> int:
    """Return the length of a list.

    Raises:
        ConfigError: it is no whole number from 1 on.
    """
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise ConfigError(f"k must be at least 1, got {k!r}")
    return int(k)
