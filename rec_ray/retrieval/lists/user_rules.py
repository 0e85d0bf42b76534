"""Rules between an item field and a user field, such as `age_limit` at most `age`.

Input: raw Arrow columns. The item side of a rule is prepared once. The users of a block become rows of codes, equal for
users to whom the rule allows the same items, and a row of codes gives the mask [n] of those items. A missing item value
restricts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rec_ray.errors import SchemaError
from rec_ray.retrieval.features.columns import as_values, index_of, is_list
from rec_ray.retrieval.ragged import row_offsets
from rec_ray.schema import FeatureDeclaration

if TYPE_CHECKING:
    from rec_ray.config.candidates import UserRule

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

REFUSED, FREE = -2, -3
"""Codes of a user without a value: REFUSED allows only items without a value, FREE allows all items."""
NO_VALUE = -1
"""Padding of rows of codes."""


@dataclass(frozen=True)
class Bags:
    """Ragged sets of codes: row i has the next `counts[i]` of `codes`; a code occurs once per row."""

    counts: Array
    codes: Array

    @property
    def owner(self) -> Array:
        """Return the row of each code: [total]."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def padded(self) -> Array:
        """Return [rows, most codes of a row] in ascending order, padded with -1 in front."""
        position = np.arange(len(self.codes)) - row_offsets(self.counts)[self.owner]
        out = np.full((len(self.counts), int(self.counts.max(initial=0))), NO_VALUE, np.int64)
        out[self.owner, position] = self.codes
        out.sort(axis=1)
        return out


@dataclass(frozen=True)
class ComparedNumbers:
    """Rule at_least or at_most. A user's code is the number of distinct item values below or up to the user's value."""

    name: str
    kind: str
    values: Array
    thresholds: Array
    rank: Array
    at_most: bool
    unknown: int

    def codes(self, column: pa.Array) -> Array:
        """Return [q, 1] codes of users by their raw values.

        Raises:
            SchemaError: the values cannot be compared with the item values.
        """
        values = numbers_of(column, self.name)
        if {self.kind, _kind(column)} == {"times", "numbers"}:
            raise SchemaError(
                f"candidates.filters.rules: {self.name}: the item field holds {self.kind}, the user field "
                f"{_kind(column)}; compare fields of one type"
            )
        side: Literal["left", "right"] = "right" if self.at_most else "left"
        position = np.searchsorted(self.thresholds, values, side=side)
        return np.where(np.isnan(values), self.unknown, position).reshape(-1, 1)

    def mask(self, codes: Array) -> Mask:
        """Return the items [n] that the rule allows for these codes."""
        code = int(codes[0])
        unrestricted = np.isnan(self.values)
        if code in (REFUSED, FREE):
            return unrestricted | (code == FREE)
        return unrestricted | (self.rank < code if self.at_most else self.rank >= code)


@dataclass(frozen=True)
class ComparedSets:
    """Rule equal, contains or contained_in. A user's codes are the user's values that any item has; 0 stands for all
    others.
    """

    name: str
    bags: Bags
    vocabulary: pa.Array
    how: str
    unknown: int
    user: FeatureDeclaration | None

    def codes(self, column: pa.Array) -> Array:
        """Return [q, most values] codes of users by their raw values, `NO_VALUE` in front.

        Raises:
            SchemaError: the values cannot be read.
        """
        counts, values = as_values(pa.table({self.name: column}), self.name, declaration_of(column, self.user))
        bags = distinct_bags(counts, index_of(values, self.vocabulary))
        # Unknown values share one code, because no item has them.
        padded = bags.padded()
        padded = padded if padded.shape[1] else np.full((len(padded), 1), NO_VALUE)
        padded[bags.counts == 0, -1] = self.unknown
        return padded

    def mask(self, codes: Array) -> Mask:
        """Return the items [n] that the rule allows for these codes."""
        unrestricted = self.bags.counts == 0
        if codes[-1] in (REFUSED, FREE):
            return unrestricted | bool(codes[-1] == FREE)
        known = codes[codes > 0]
        has_unknown = bool((codes == 0).any())
        hits = np.bincount(self.bags.owner[np.isin(self.bags.codes, known)], minlength=len(unrestricted))
        contains = (hits == len(known)) & (not has_unknown)
        contained = hits == self.bags.counts
        matching = {"contains": contains, "contained_in": contained, "equal": contains & contained}
        return unrestricted | matching[self.how]


def prepare_rule(
    rule: UserRule,
    items: pa.Table,
    item_features: Mapping[str, FeatureDeclaration],
    user_features: Mapping[str, FeatureDeclaration],
) -> ComparedNumbers | ComparedSets:
    """Return a rule with its item side prepared. items: [n] raw fields.

    Raises:
        SchemaError: the item field has a type that the rule cannot compare.
    """
    column = column_of(items, rule.item)
    name = f"{rule.item} {rule.must_be} {rule.user}"
    unknown = FREE if rule.unknown_user == "allow" else REFUSED
    if rule.must_be in ("at_least", "at_most"):
        values = numbers_of(column, name)
        thresholds = np.unique(values[~np.isnan(values)])
        rank = np.searchsorted(thresholds, values)
        return ComparedNumbers(name, _kind(column), values, thresholds, rank, rule.must_be == "at_most", unknown)
    declaration = declaration_of(column, item_features.get(rule.item))
    counts, values = as_values(pa.table({rule.item: column}), rule.item, declaration)
    vocabulary = pc.unique(values)
    bags = distinct_bags(counts, index_of(values, vocabulary))
    return ComparedSets(name, bags, vocabulary, rule.must_be, unknown, user_features.get(rule.user))


def _kind(column: pa.Array) -> str:
    times = pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)
    return "nothing" if pa.types.is_null(column.type) else "times" if times else "numbers"


def numbers_of(column: pa.Array, rule_name: str) -> Array:
    """Return a column as [n] float64, times as microseconds since 1970; null and NaN become NaN.

    Raises:
        SchemaError: the column holds neither numbers nor times.
    """
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        micros = pa.timestamp("us", getattr(kind, "tz", None))
        column = pc.cast(pc.cast(column, micros, safe=False), pa.int64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        raise SchemaError(f"candidates.filters: {rule_name} needs numbers or times, found {kind}")
    # Unsafe cast: times in distant years lose microseconds.
    return pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def column_of(items: pa.Table, name: str) -> pa.Array:
    """Return a column as one array."""
    column = items[name]
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def declaration_of(
    column: pa.Array, declared: FeatureDeclaration | None, separator: str | None = None
) -> FeatureDeclaration:
    """Return how set values are read: as declared, as paths if there is a separator, else as lists or single values."""
    if separator is not None:
        return FeatureDeclaration("category_path", separator=separator)
    if declared is not None and declared.kind in ("categorical", "categories", "category_path"):
        return declared
    return FeatureDeclaration("categories" if is_list(column.type) else "categorical")


def distinct_bags(counts: Array, index: Array) -> Bags:
    """Return bags of index + 1 with each value once per row; 0 stands for values outside the vocabulary."""
    owner = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    pairs = np.unique(owner << 32 | (index.astype(np.int64) + 1))
    return Bags(np.bincount(pairs >> 32, minlength=len(counts)), pairs & 0xFFFFFFFF)
