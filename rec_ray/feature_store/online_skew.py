"""Comparison of features in the online store with the offline store, for a sample of users or items.

A model learns from the offline store and is served with the online store; a difference between both changes its
answers without any error. Input: an open store, the fields that the model reads, some ids and an instant. Output: one
`Skew` per field, with the likely cause of a difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from rec_ray.errors import FeatureStoreError
from rec_ray.feature_store.api import FeatureStore
from rec_ray.feature_store.definitions import Side
from rec_ray.feature_store.feature_join import FeatureJoin, JoinedView, as_key
from rec_ray.feature_store.online_values import is_equal, plain_value
from rec_ray.feature_store.point_in_time import point_in_time, portable_config

EARLIER = (timedelta(hours=1), timedelta(days=1), timedelta(days=2), timedelta(days=7), timedelta(days=30))
"""Ages at which the offline values are looked up to recognise a stale materialisation."""
MOST = 0.9
"""Share of the differing ids that one cause must explain."""
Values = list[Any]


@dataclass(frozen=True)
class Skew:
    """Difference of one field. compared: ids with a value in at least one store. differ: those with other values.

    missing: those without a value online, contained in `differ`. cause: a phrase; empty if none explains most of them.
    example: an id with its offline and its online value.
    """

    view: str
    field: str
    compared: int
    differ: int
    missing: int = 0
    cause: str = ""
    example: tuple[str, str, str] | None = None

    @property
    def share(self) -> float:
        """Share of the compared ids that differ."""
        return self.differ / max(1, self.compared)

    @property
    def said(self) -> str:
        """The finding in one sentence."""
        said = f"{self.differ} of {self.compared} values of {self.field!r} in view {self.view!r} differ online"
        if self.cause:
            said += f": {self.cause}"
        if self.example is not None:
            said += f" (id {self.example[0]!r}: offline {self.example[1]}, online {self.example[2]})"
        return said


def find_skew(
    store: FeatureStore, side: Side, fields: Sequence[str], ids: Sequence[str], as_of: datetime
) -> list[Skew]:
    """Return a `Skew` for every field of a side, equal ones included. fields: names as in the settings.

    Raises:
        ConfigError: a field is missing.
        FeatureStoreError: the online or the offline store does not respond.
    """
    if not fields or not ids:
        return []
    join = side.join(fields)
    offline = _offline(store, join, ids, as_of)
    found: list[Skew] = []
    earlier: dict[timedelta, Mapping[str, Values]] = {}
    for view, key_of, columns in _views(join):
        online = _online(store, view, key_of, list(columns.values()), ids)
        for name, field in columns.items():
            skew = compare_values(view, name, ids, offline[name], online[field])
            if skew.differ and not skew.cause:
                for age in EARLIER:
                    if age not in earlier:
                        earlier[age] = _offline(store, join, ids, as_of - age)
                    if not compare_values(view, name, ids, earlier[age][name], online[field]).differ:
                        skew = _because(skew, f"the values are those of {_in_words(age)} before; is it materialised?")
                        break
            found.append(skew)
    return found


def _views(join: FeatureJoin) -> list[tuple[str, JoinedView, Mapping[str, str]]]:
    """Return name, the view with the key, and our column -> field, of stored and of computed views."""
    stored = [(view.name, view, view.fields) for view in join.views]
    return stored + [(view.name, view.inputs[0], view.fields) for view in join.computed if view.inputs]


def _offline(store: FeatureStore, join: FeatureJoin, ids: Sequence[str], as_of: datetime) -> Mapping[str, Values]:
    times = pa.array([as_of] * len(ids), pa.timestamp("us", "UTC"))
    table = point_in_time(portable_config(store), join, pa.array(ids, pa.string()), times)
    return {name: table[name].to_pylist() for name in join.columns}


def _online(
    store: FeatureStore, view: str, key_of: JoinedView, fields: Sequence[str], ids: Sequence[str]
) -> Mapping[str, Values]:
    kind = key_of.key_kind
    keys = as_key(
        pa.array(ids, pa.string()), kind if kind is not None and pa.types.is_integer(kind) else pa.string(), key_of
    )
    try:
        answer: dict[str, Values] = store.get_online_features(
            features=[f"{view}:{field}" for field in fields], entity_rows={key_of.key: keys.to_pylist()}
        ).to_dict()
    except Exception as error:
        raise FeatureStoreError(f"the online store did not respond for view {view!r}: {error}") from error
    return {field: answer[field] for field in fields}


def compare_values(view: str, name: str, ids: Sequence[str], offline: Values, online: Values) -> Skew:
    """Return the difference of one field. offline, online: its values for the ids."""
    pairs = [
        (each, plain_value(one), plain_value(other)) for each, one, other in zip(ids, offline, online, strict=True)
    ]
    known = [pair for pair in pairs if pair[1] is not None or pair[2] is not None]
    other = [pair for pair in known if not is_equal(pair[1], pair[2])]
    missing = sum(online is None for _, _, online in other)
    if not other:
        return Skew(view, name, len(known), 0)
    first = other[0]
    example = (first[0], _short(first[1]), _short(first[2]))
    return Skew(view, name, len(known), len(other), missing, _cause(other), example)


def _because(skew: Skew, cause: str) -> Skew:
    return Skew(skew.view, skew.field, skew.compared, skew.differ, skew.missing, cause, skew.example)


def _cause(pairs: Sequence[tuple[str, Any, Any]]) -> str:
    """Return the cause that explains most differences of a field, or an empty text."""
    few = len(pairs) * (1 - MOST)
    both = [(one, other) for _, one, other in pairs if one is not None and other is not None]
    if sum(other is None for _, _, other in pairs) >= len(pairs) - few:
        return "the rows are missing online; is the view materialised?"
    if sum(one is None for _, one, _ in pairs) >= len(pairs) - few:
        return "the values have expired offline (ttl) and are still served online"
    if len(both) < len(pairs) - few:
        return ""
    if sum(type(one) is not type(other) and str(one) == str(other) for one, other in both) >= len(both) - few:
        return f"the type is {type(both[0][0]).__name__} offline and {type(both[0][1]).__name__} online"
    if all(isinstance(one, datetime) and isinstance(other, datetime) for one, other in both):
        return _same_for_most(
            [(other - one).total_seconds() / 3600 for one, other in both], few, "{:+.1f} hours online"
        )
    if all(_is_number(one) and _is_number(other) and one for one, other in both):
        factor = _same_for_most([other / one for one, other in both], few, "the factor {:.6g} online")
        return factor or _same_for_most([other - one for one, other in both], few, "{:+.6g} online")
    return ""


def _same_for_most(differences: Sequence[float], few: float, said: str) -> str:
    """Describe the median difference if nearly all are equal to it; needs at least three."""
    middle = float(np.median(differences))
    equal = sum(math.isclose(each, middle, rel_tol=1e-3, abs_tol=1e-6) for each in differences)
    return f"by {said.format(middle)}" if len(differences) >= 3 and equal >= len(differences) - few else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _in_words(age: timedelta) -> str:
    days = age.days
    return f"{days} day{'s' if days > 1 else ''}" if days else f"{age.seconds // 3600} hour"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
