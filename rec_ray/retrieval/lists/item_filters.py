"""Filters that decide which items may be recommended to which users: declared rules over raw fields, as masks.

Input: raw Arrow columns and the declared rules. Rules over items alone are evaluated once into one mask [n]; a block of
users is divided into groups that share a mask. Nothing is evaluated user by user, a missing value restricts nothing,
and the current time is an argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rec_ray.errors import SchemaError, list_names
from rec_ray.retrieval.features.columns import as_values, index_of
from rec_ray.retrieval.lists.user_rules import (
    NO_VALUE,
    Bags,
    ComparedNumbers,
    ComparedSets,
    column_of,
    declaration_of,
    distinct_bags,
    numbers_of,
    prepare_rule,
)
from rec_ray.retrieval.ragged import row_offsets
from rec_ray.schema import FIRST_SEEN, TIMESTAMP, FeatureDeclaration

if TYPE_CHECKING:
    from rec_ray.config.candidates import FilterSettings

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_KEPT_MASKS = 50_000_000
"""Bytes of masks of single rules that are cached for the next block of users."""


@dataclass(frozen=True)
class UserGroups:
    """Groups of the users of a block; users of a group may get the same items.

    group: [q] group of each user. masks: per group the items that may be recommended, [n] bool. emptied_by: per group
    the rule that left no item, or None.
    """

    group: Array
    masks: Sequence[Mask]
    emptied_by: Sequence[str | None]


@dataclass(frozen=True)
class ItemFilters:
    """Filters evaluated on the fields of `n` items.

    allowed: [n] bool, items that may be recommended to some user, or None for all. emptied_by: the rule on items alone
    that left no item, or None. left_out: rule on items alone -> number of items that it removes first. categories:
    category codes that `most_per_category` counts, or None. always: [m] item indices of `always_include` that are in
    the catalogue. fresh: [n] bool, new items, or None.
    """

    count: int
    allowed: Mask | None = None
    emptied_by: str | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    rules: Sequence[ComparedNumbers | ComparedSets] = ()
    user_fields: Sequence[str] = ()
    categories: Bags | None = None
    most_per_category: int = 0
    always: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    fresh: Mask | None = None
    notes: Sequence[str] = ()
    _masks: dict[tuple[int, bytes], Mask] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_masks": {}}

    def groups(self, users: Mapping[str, pa.Array], count: int) -> UserGroups:
        """Divide the `count` users of a block by the items that may be recommended to them.

        users: field -> [count] raw values, for the fields in `user_fields`.

        Raises:
            SchemaError: a user field cannot be compared with the item field.
        """
        everything = np.ones(self.count, bool) if self.allowed is None else self.allowed
        if not self.rules:
            return UserGroups(np.zeros(count, np.int64), [everything], [self.emptied_by])
        codes = [rule.codes(users[name]) for rule, name in zip(self.rules, self.user_fields, strict=True)]
        ends = np.cumsum([user_codes.shape[1] for user_codes in codes])
        rows, group = np.unique(np.concatenate(codes, axis=1), axis=0, return_inverse=True)
        masks, emptying_rules = [], []
        for row in rows:
            mask, emptying_rule = everything, self.emptied_by
            for number, rule in enumerate(self.rules):
                mask = mask & self._mask(number, row[ends[number] - codes[number].shape[1] : ends[number]])
                if emptying_rule is None and not mask.any():
                    emptying_rule = rule.name
            masks.append(mask)
            emptying_rules.append(emptying_rule)
        return UserGroups(group.reshape(-1), masks, emptying_rules)

    def _mask(self, number: int, codes: Array) -> Mask:
        key = (number, codes[codes != NO_VALUE].tobytes())
        mask = self._masks.get(key)
        if mask is None:
            if len(self._masks) * self.count > _KEPT_MASKS:
                self._masks.clear()
            # Other threads may clear the cache at any time.
            mask = self._masks[key] = self.rules[number].mask(codes)
        return mask

    def capacity(self, mask: Mask) -> int:
        """Return the largest number of items of a mask that a list can hold, given `most_per_category`."""
        if self.categories is None:
            return int(np.count_nonzero(mask))
        categorised = self.categories.counts > 0
        first = row_offsets(self.categories.counts)[:-1][categorised & mask]
        required = np.isin(np.flatnonzero(categorised & mask), self.always)
        category = self.categories.codes[first]
        categories = int(category.max(initial=0)) + 1
        always, others = (np.bincount(category[chosen], minlength=categories) for chosen in (required, ~required))
        free_places = np.minimum(others, np.maximum(self.most_per_category - always, 0))
        return int(np.count_nonzero(mask & ~categorised) + always.sum() + free_places.sum())


def raw_columns(table: pa.Table, beginning: str, fields: Sequence[str]) -> dict[str, pa.Array]:
    """Return the raw fields of encoded rows by their own names. beginning: prefix of the columns.

    Raises:
        SchemaError: a field is missing, because the rows were encoded for other filters.
    """
    missing = [name for name in fields if f"{beginning}{name}" not in table.column_names]
    if missing:
        raise SchemaError(f"the encoded rows lack {list_names(missing)}, which filters read; run rec-ray train again")
    return {name: column_of(table, f"{beginning}{name}") for name in fields}


def evaluate_item_filters(
    declared: FilterSettings,
    items: pa.Table,
    item_ids: pa.Array,
    now: datetime,
    *,
    item_features: Mapping[str, FeatureDeclaration],
    user_features: Mapping[str, FeatureDeclaration],
    known: Mask | None = None,
    fresh_days: float | None = None,
) -> ItemFilters:
    """Evaluate the declared filters on the raw fields of all items.

    items: [n] rows, a column for each declared field, and `first_seen` if `fresh_days` is given. item_ids: [n].
    item_features, user_features: declarations by which values are split into sets. known: [n] bool, items that exist.
    fresh_days: days after `first_seen` during which an item is new.

    Raises:
        SchemaError: a field has a type that its rule cannot use.
    """
    n = len(item_ids)
    notes: list[str] = []
    always = index_of(pa.array(declared.always_include, pa.string()), item_ids)
    missing = [item for item, place in zip(declared.always_include, always, strict=True) if place < 0]
    notes += [f"always_include names item {item!r}, which is not in the catalogue" for item in missing]
    always = np.unique(always[always >= 0]).astype(np.int64)

    steps: dict[str, Mask] = {} if known is None else {"known": known}
    if declared.available:
        steps["available"] = _as_true(items, declared.available)
    if declared.available_from:
        steps["available_from"] = ~(_as_times(items, declared.available_from, "available_from") > _micros(now))
    if declared.available_until:
        steps["available_until"] = ~(_as_times(items, declared.available_until, "available_until") <= _micros(now))
    always = always[np.all([step[always] for step in steps.values()], axis=0)] if steps else always
    categories: Bags | None = None
    if declared.category:
        column = column_of(items, declared.category)
        declaration = declaration_of(column, item_features.get(declared.category), declared.separator)
        counts, values = as_values(pa.table({declared.category: column}), declared.category, declaration)
        vocabulary = pc.unique(values)
        index = index_of(values, vocabulary)
        bags = distinct_bags(counts, index)
        for name in ("allowed_categories", "blocked_categories"):
            if chosen := getattr(declared, name):
                wanted = index_of(pa.array(chosen, pa.string()), vocabulary)
                notes += [
                    f"{name}: no item has the category {c!r}" for c, w in zip(chosen, wanted, strict=True) if w < 0
                ]
                has = np.bincount(bags.owner[np.isin(bags.codes, wanted[wanted >= 0] + 1)], minlength=n) > 0
                steps[name] = has if name == "allowed_categories" else ~has
                steps[name][always] = True
        if declared.most_per_category:
            path = declaration.kind == "category_path"
            categories = _at_level(counts, index, declared.category_level) if path else bags
    allowed = np.ones(n, bool)
    left_out: dict[str, int] = {}
    emptied_by: str | None = None
    for name, kept in steps.items():
        left_out[name] = int(np.count_nonzero(allowed & ~kept))
        allowed &= kept
        if emptied_by is None and not allowed.any():
            emptied_by = name
    fresh = None
    if fresh_days is not None:
        fresh = _as_times(items, FIRST_SEEN, "fresh_share") > _micros(now) - fresh_days * 86_400e6
    return ItemFilters(
        count=n,
        allowed=allowed if steps else None,
        emptied_by=emptied_by,
        left_out=left_out,
        rules=tuple(prepare_rule(rule, items, item_features, user_features) for rule in declared.rules),
        user_fields=tuple(rule.user for rule in declared.rules),
        categories=categories,
        most_per_category=declared.most_per_category or 0,
        always=always,
        fresh=fresh,
        notes=tuple(notes),
    )


def try_filters(
    declared: FilterSettings,
    items: pa.Schema,
    users: pa.Schema,
    item_features: Mapping[str, FeatureDeclaration],
    user_features: Mapping[str, FeatureDeclaration],
) -> None:
    """Evaluate filters on empty tables, so that a field of a wrong type is found before the training.

    Raises:
        SchemaError: a field has a type that its rule cannot use.
    """
    nothing = pa.array([], pa.string())
    now = datetime.now(UTC)
    evaluated = evaluate_item_filters(
        declared, items.empty_table(), nothing, now, item_features=item_features, user_features=user_features
    )
    evaluated.groups({column.name: pa.array([], column.type) for column in users}, 0)


def _as_true(items: pa.Table, name: str) -> Mask:
    column = column_of(items, name)
    if not (pa.types.is_boolean(column.type) or pa.types.is_null(column.type)):
        raise SchemaError(f"candidates.filters.available: field {name!r} holds {column.type}; expected true or false")
    return pc.fill_null(pc.cast(column, pa.bool_()), True).to_numpy(zero_copy_only=False)


def _as_times(items: pa.Table, name: str, setting: str) -> Array:
    column = column_of(items, name)
    if not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type) or pa.types.is_null(column.type)):
        raise SchemaError(f"candidates.filters.{setting}: field {name!r} holds {column.type}; expected a time")
    return numbers_of(column, name)


def _micros(now: datetime) -> float:
    return float(pa.scalar(now, TIMESTAMP).value)


def _at_level(counts: Array, index: Array, level: int | None) -> Bags:
    """Return one code per path: the prefix of `level` parts, or the whole path. Prefixes are ordered from short to
    long.
    """
    counts = counts.astype(np.int64)
    first = row_offsets(counts)[:-1][counts > 0]
    depth = counts[counts > 0] if level is None else np.minimum(counts[counts > 0], level)
    return Bags((counts > 0).astype(np.int64), index[first + depth - 1].astype(np.int64) + 1)
