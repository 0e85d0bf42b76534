"""Events and features of one user as a timeline, in well under a millisecond.

Input: events of the caller, oldest first or with times, and a mapping of features. Output: `Timelines` of one user.
The rules are those of `retrieval.features.encoding`, which encodes blocks of many users and needs milliseconds for one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rec_ray.api.frames import Frame, id_column, plain_column, require_names, time_column, to_table
from rec_ray.config import InteractionSettings
from rec_ray.errors import ConfigError, DataError, SchemaError, list_names
from rec_ray.retrieval.features.batch import FeatureBatch
from rec_ray.retrieval.features.dislikes import DISLIKED, is_disliked
from rec_ray.retrieval.features.preprocessing import Preprocessor
from rec_ray.retrieval.features.timelines import QUERIES, Timelines
from rec_ray.schema import EVENT_TIMESTAMP, EVENT_TYPE, EVENT_VALUE, ITEM_ID, USER_ID

Array = npt.NDArray[Any]

WHAT = "the history"


@dataclass(frozen=True)
class HistoryReader:
    """Reader of the events of one user for a model.

    rows: item id -> index in the catalogue, from 1. meaning: declared meaning of events. time_gaps: the model reads the
    time between events.
    """

    preprocessor: Preprocessor
    meaning: InteractionSettings
    rows: Mapping[str, int]
    time_gaps: bool

    @cached_property
    def _types(self) -> dict[str, int]:
        return {name: code for code, name in enumerate(self.preprocessor.event_types, 1)}

    def read(
        self,
        history: Sequence[str | int] | Frame | None,
        features: Mapping[str, Any] | None,
        *,
        further_fields: Sequence[str] = (),
        timezone: str | None = None,
        needs_times: bool = False,
    ) -> tuple[Timelines, pa.Table]:
        """Return the timeline of a user and the user's raw features, one row.

        history: item ids, oldest first; or a frame with `item_id` and optionally `event_timestamp`, `event_type` and
        `event_value`. Items outside the catalogue and exact repeats of an event are left out. features: by name; a
        missing one is unknown. further_fields: names in `features` that filters read. timezone: zone of times without
        one. needs_times: the filters read times.

        Raises:
            ConfigError: a feature is unknown to the model, or the model needs times.
            DataError: a column is missing, has another type, or contains null ids or times.
        """
        # A series of pandas or Polars counts as a list of ids.
        events: Any = history
        if hasattr(events, "to_list"):
            events = events.to_list()
        items, types, seconds = self._events(events, timezone, needs_times or bool(self.time_gaps))
        n = len(items)
        raw = self.raw_features(features or {}, further_fields)
        encoded = self.preprocessor.users.encode(raw)
        return Timelines(
            user_ids=pa.array([""]),
            first=np.array([0, n]),
            item_index=items,
            event_type=types,
            event_seconds=seconds,
            weight=np.ones(n, np.float32),
            split=np.zeros(n, np.int8),
            feature_row=np.zeros(n + QUERIES, np.int64),
            user_features=FeatureBatch.from_numpy(
                encoded.numeric, encoded.tokens, encoded.token_counts, encoded.vector
            ),
        ), raw

    def raw_features(self, features: Mapping[str, Any], further_fields: Sequence[str]) -> pa.Table:
        """Return features as a table of one row with a column for each declared feature and further field."""
        names = list(dict.fromkeys([*self.preprocessor.users.names, *further_fields]))
        unknown = [name for name in features if name not in names]
        if unknown:
            raise ConfigError(f"the model has no user feature {list_names(unknown)}; it has {list_names(names, 20)}")
        columns = {}
        for name in names:
            value = features.get(name)
            try:
                columns[name] = plain_column(
                    pa.array([value.item() if isinstance(value, np.generic) else value], from_pandas=True)
                )
            except (pa.ArrowException, TypeError, ValueError):
                raise SchemaError(
                    f"the feature {name!r} is a {type(value).__name__}, which Arrow cannot hold"
                ) from None
        # Without features the table still has one row.
        return pa.table(columns) if columns else pa.table({"": pa.nulls(1)})

    def _events(self, history: Any, timezone: str | None, needs_times: bool) -> tuple[Array, Array, Array]:
        if history is None or _is_list(history):
            ids = [] if history is None else [_as_id(each) for each in history]
            if needs_times and ids:
                raise ConfigError(
                    "this version reads the times of events (model.time_gaps or candidates.filters.seen_days); give "
                    f"the history as a table with {ITEM_ID!r} and {EVENT_TIMESTAMP!r}"
                )
            rows = np.array([self.rows.get(each, 0) for each in ids], np.int32)
            # Consecutive seconds, because events of one time and item would count as repeats.
            seconds = np.flatnonzero(rows)
            return rows[rows > 0], np.zeros(len(seconds), np.int32), seconds
        table = to_table(history, WHAT)
        if not table.num_rows:
            return np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.int64)
        require_names(table, {ITEM_ID: "a column of that name; rename it"}, WHAT)
        rows = np.array([self.rows.get(each, 0) for each in id_column(table, ITEM_ID, WHAT).to_pylist()], np.int32)
        if EVENT_TIMESTAMP in table.column_names:
            micros = time_column(table, EVENT_TIMESTAMP, WHAT, timezone).cast(pa.int64()).to_numpy()
        elif needs_times:
            raise ConfigError(f"this version reads the times of events; the history has no column {EVENT_TIMESTAMP!r}")
        else:
            micros = np.arange(len(rows)) * 1_000_000
        if USER_ID in table.column_names and len(pc.unique(table[USER_ID])) > 1:
            raise DataError(
                f"{WHAT} has events of {len(pc.unique(table[USER_ID]))} users in {USER_ID!r}; give those of one"
            )
        values = self._values(table)
        of_type = _named(table, EVENT_TYPE, self.meaning.type_field)
        names = [None] * len(rows) if of_type is None else table[of_type].cast(pa.string()).to_pylist()
        distinct = {name: number for number, name in enumerate(dict.fromkeys(names))}
        spelt = np.array([distinct[name] for name in names], np.int32)
        types = self._type_codes(names, values)
        order = np.argsort(micros, kind="stable")
        order = order[rows[order] > 0]
        rows, micros, types, values, spelt = (each[order] for each in (rows, micros, types, values, spelt))
        kept = _first_of_repeats(micros, rows, spelt, np.nan_to_num(values, nan=-1e30))
        return rows[kept], types[kept], micros[kept] // 1_000_000

    def _values(self, table: pa.Table) -> Array:
        name = _named(table, EVENT_VALUE, self.meaning.value_field)
        if name is None or self.meaning.value_field is None:
            return np.full(table.num_rows, np.nan, np.float32)
        try:
            values = table[name].cast(pa.float32(), safe=False).to_numpy()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise SchemaError(f"{WHAT}: {name!r} holds {table[name].type}; expected numbers") from None
        return np.where(np.isfinite(values), values, np.nan).astype(np.float32)

    def _type_codes(self, names: Sequence[str | None], values: Array) -> Array:
        disliked = is_disliked(values, self.meaning.min_positive_value)
        negative = set(self.meaning.negative_types)
        codes = []
        for name, low in zip(names, disliked.tolist(), strict=True):
            own = f"{name or ''} {DISLIKED}".strip() if low and (name or "") not in negative else name
            codes.append(self._types.get(own, 0) if own is not None else 0)
        return np.array(codes, np.int32)


def _named(table: pa.Table, name: str, declared: str | None) -> str | None:
    """Return the column of this name, or else of the name that the training declared, or None."""
    return next((each for each in (name, declared) if each in table.column_names), None)


def _is_list(history: Any) -> bool:
    """Return True for a sequence of ids, as opposed to a table or a list of rows."""
    if isinstance(history, str) or not isinstance(history, (Sequence, np.ndarray)):
        return False
    return not any(isinstance(each, Mapping) for each in history)


def _as_id(each: Any) -> str:
    if isinstance(each, str):
        return str(each)
    if isinstance(each, (int, np.integer)) and not isinstance(each, bool):
        return str(int(each))
    raise DataError(f"{WHAT} has {each!r}; expected ids as strings or whole numbers")


def _first_of_repeats(*keys: Array) -> Array:
    """Return the places, ascending, of the first of all rows with the same keys [n]."""
    order = np.lexsort((np.arange(len(keys[0])), *reversed(keys)))
    same = np.ones(max(len(order) - 1, 0), bool)
    for key in keys:
        same &= key[order[1:]] == key[order[:-1]]
    first = np.ones(len(order), bool)
    first[1:] = ~same
    return np.sort(order[first])
