"""List builders for the filters of a version or of a call, evaluated once and kept.

Input: item vectors, settings and raw item fields. Output: a `ListBuilder` for each choice of filters. Threads share the
builders.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from rec_ray.api.frames import id_column
from rec_ray.api.item_vectors import ItemVectors
from rec_ray.config import CandidateSettings, FilterSettings
from rec_ray.errors import ConfigError, list_names
from rec_ray.retrieval.lists.builder import ListBuilder
from rec_ray.retrieval.lists.item_filters import evaluate_item_filters
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.schema import FIRST_SEEN, ITEM_ID

AS_TRAINED: Literal["as_trained"] = "as_trained"
FilterChoice = Literal["as_trained"] | FilterSettings | Mapping[str, Any] | None
"""Filters of a call: those of the version, others, or none."""
KEPT = 16
"""Maximum number of evaluated filters that are kept."""


class ListBuilders:
    """Builders of the lists of one version.

    items: raw item fields with `item_id`, or None. withdrawn: ids that are in no list.
    """

    def __init__(
        self,
        bundle: TwoTowerBundle,
        vectors: ItemVectors,
        settings: CandidateSettings,
        items: pa.Table | None,
        withdrawn: Sequence[str],
    ) -> None:
        self.bundle, self.vectors, self.settings = bundle, vectors, settings
        self.known: np.ndarray[Any, Any] | None = None
        if len(withdrawn):
            self.known = np.ones(len(vectors.item_ids), bool)
            self.known[vectors.places(withdrawn)] = False
        self._fields = None if items is None else _in_order(items, vectors.item_ids)
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, int], ListBuilder] = {}

    def choose(self, filters: FilterChoice) -> FilterSettings:
        """Return the filters of a call.

        Raises:
            ConfigError: they have an unknown key or a wrong value.
        """
        if isinstance(filters, FilterSettings):
            return filters
        if filters is None:
            return FilterSettings()
        if isinstance(filters, str):
            if filters != AS_TRAINED:
                raise ConfigError(f"filters is {filters!r}; expected {AS_TRAINED!r}, None, or candidates.filters")
            return self.settings.filters
        try:
            return FilterSettings.model_validate(dict(filters))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "filters"
            known = list_names(FilterSettings.model_fields, 20)
            raise ConfigError(f"filters: {place}: {first['msg']}; known keys are {known}") from None

    def get(self, filters: FilterChoice, now: datetime) -> ListBuilder:
        """Return the builder for the filters of a call. now: instant of filters with times, to the minute.

        Raises:
            ConfigError: the filters are wrong, or read item fields that were not given.
        """
        chosen = self.choose(filters)
        timed = chosen.available_from or chosen.available_until or self.settings.fresh_share
        key = chosen.model_dump_json(), int(now.timestamp() // 60) if timed else 0
        with self._lock:
            if key not in self._kept:
                if len(self._kept) >= KEPT:
                    self._kept.clear()
                self._kept[key] = self._build(chosen, now)
            return self._kept[key]

    def _build(self, chosen: FilterSettings, now: datetime) -> ListBuilder:
        settings, vectors = self.settings, self.vectors
        wanted = {name: f"candidates.filters.{setting}" for name, setting in chosen.item_fields.items()}
        wanted |= {FIRST_SEEN: "candidates.fresh_share"} if settings.fresh_share else {}
        fields = self._fields if self._fields is not None else pa.table({ITEM_ID: vectors.item_ids})
        missing = [name for name in wanted if name not in fields.column_names]
        if missing:
            without = "" if FIRST_SEEN in missing else ", or filters=None to recommend without filters"
            raise ConfigError(
                f"{wanted[missing[0]]} reads the item fields {list_names(missing)}; give them as items=TABLE with "
                f"{ITEM_ID!r} when opening the version{without}"
            )
        evaluated = evaluate_item_filters(
            chosen,
            fields,
            vectors.item_ids,
            now,
            item_features=self.bundle.preprocessor.items.declarations,
            user_features=self.bundle.preprocessor.users.declarations,
            known=self.known,
            fresh_days=settings.fresh_days if settings.fresh_share else None,
        )
        matrix = vectors.matrix[1:]
        return ListBuilder(
            vectors.index,
            matrix.__getitem__,
            matrix.__getitem__,
            evaluated,
            settings.diversity,
            settings.fresh_share,
            self.bundle.similarity == "cosine",
        )


def _in_order(items: pa.Table, item_ids: pa.Array) -> pa.Table:
    """Return the rows of items in the order of the ids; an item without a row has null fields."""
    ids = id_column(items, ITEM_ID, "items")
    if len(pc.unique(ids)) != len(ids):
        raise ConfigError("items has an id twice; keep one row per item")
    place = pc.index_in(item_ids, value_set=ids)
    rows = items.take(place)
    return rows.set_column(rows.schema.get_field_index(ITEM_ID), ITEM_ID, item_ids)
