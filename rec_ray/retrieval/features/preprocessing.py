"""Raw feature columns and ids in, the numbers that the towers read out; what was learned from data is kept.

`FeaturePreprocessor` handles the declared features of one side (users or items): blocks of Arrow tables give partial
`FeatureStatistics`, these merge, and `fit` turns them into vocabularies and scales; `Preprocessor` adds the vocabulary
of item ids and of event types and is what a bundle stores. It does not know where tables come from or how towers work.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rec_ray.errors import BundleError
from rec_ray.retrieval.features.batch import FeatureShape
from rec_ray.retrieval.features.columns import as_numbers, as_values, as_vectors, hash_words, index_of, interleave
from rec_ray.schema import FeatureDeclaration

NUMBERS = ("numeric", "timestamp")
TOKENS = ("categorical", "categories", "category_path", "text")
CLIP = 5.0
"""Standard deviations beyond which a number is cut: one absurd price must not drown all others."""

Array = npt.NDArray[Any]


@dataclass
class FeatureStatistics:
    """What one or more blocks say about the declared features; statistics of several blocks add up."""

    rows: int = 0
    moments: dict[str, tuple[int, float, float]] = field(default_factory=dict)
    """Feature -> number of finite values, their mean, and the sum of squared distances from it."""
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """Feature -> how often each value occurs."""

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Return the statistics of both (Chan, Golub & LeVeque 1979 for the moments)."""
        moments = dict(self.moments)
        for name, (n_b, mean_b, square_b) in other.moments.items():
            n_a, mean_a, square_a = moments.get(name, (0, 0.0, 0.0))
            n = n_a + n_b
            if n:
                delta = mean_b - mean_a
                mean = mean_a + delta * n_b / n
                moments[name] = (n, mean, square_a + square_b + delta * delta * n_a * n_b / n)
            else:
                moments[name] = (0, 0.0, 0.0)
        counts = {name: Counter(values) for name, values in self.counts.items()}
        for name, values in other.counts.items():
            counts.setdefault(name, Counter()).update(values)
        return FeatureStatistics(self.rows + other.rows, moments, counts)


@dataclass(frozen=True)
class EncodedFeatures:
    """Encoded features of `n` rows as arrays, laid out as in `FeatureBatch`.

    numeric: [n, numeric] float32. tokens: [T] int32. token_counts: [n, fields] int32. vector: [n, vector] float32.
    """

    numeric: Array
    tokens: Array
    token_counts: Array
    vector: Array


@dataclass(frozen=True)
class FeaturePreprocessor:
    """The fitted features of one side.

    Every number becomes two: its standardised value and whether it was missing. Every field of categories or text
    becomes a bag of tokens in one table shared by the side; token 0 is a value that was not seen when fitting.
    """

    declarations: Mapping[str, FeatureDeclaration]
    scales: Mapping[str, tuple[float, float]]
    """Feature -> mean and standard deviation."""
    vocabularies: Mapping[str, Sequence[str]]
    """Feature -> its values, the most frequent first."""
    text_buckets: int = 0

    def __post_init__(self) -> None:
        offsets, first = {}, 1
        for name in self._named(TOKENS):
            offsets[name] = first
            if self.declarations[name].kind != "text":
                first += len(self.vocabularies[name])
        for name in self._named(("text",)):
            offsets[name] = first
        object.__setattr__(self, "_offsets", offsets)
        object.__setattr__(self, "_tokens", first + (self.text_buckets if self._named(("text",)) else 0))

    def _named(self, kinds: Sequence[str]) -> list[str]:
        return [name for name, declaration in self.declarations.items() if declaration.kind in kinds]

    @property
    def token_offsets(self) -> Mapping[str, int]:
        """Feature -> the first row of its tokens in the side's table; all texts share theirs."""
        return self._offsets  # type: ignore[attr-defined]

    @property
    def names(self) -> list[str]:
        """The declared features, in the order in which they are encoded."""
        return list(self.declarations)

    @property
    def shape(self) -> FeatureShape:
        """The widths that the tower of this side needs to know."""
        fields = len(self._named(TOKENS))
        return FeatureShape(
            numeric=2 * len(self._named(NUMBERS)),
            fields=fields,
            tokens=self._tokens if fields else 0,  # type: ignore[attr-defined]
            vector=sum(self.declarations[name].length or 0 for name in self._named(("vector",))),
        )

    def encode(self, table: pa.Table) -> EncodedFeatures:
        """Encode the declared columns of a table.

        Raises:
            SchemaError: a declared column is missing or cannot be read as its kind.
        """
        n = table.num_rows
        numbers = [as_numbers(table, name, self.declarations[name]) for name in self._named(NUMBERS)]
        numeric = np.zeros((n, 2 * len(numbers)), np.float32)
        for i, (name, values) in enumerate(zip(self._named(NUMBERS), numbers, strict=True)):
            mean, deviation = self.scales[name]
            missing = np.isnan(values)
            numeric[:, 2 * i] = np.where(missing, 0.0, np.clip((values - mean) / deviation, -CLIP, CLIP))
            numeric[:, 2 * i + 1] = missing
        bags = []
        for name in self._named(TOKENS):
            counts, values = as_values(table, name, self.declarations[name])
            offset = self._offsets[name]  # type: ignore[attr-defined]
            if self.declarations[name].kind == "text":
                bags.append(hash_words(counts, values, self.text_buckets, offset))
            else:
                index = pc.index_in(values, value_set=pa.array(self.vocabularies[name], pa.string()))
                found = pc.fill_null(index, -1).to_numpy(zero_copy_only=False)
                bags.append((counts, np.where(found < 0, 0, found + offset).astype(np.int32)))
        tokens, token_counts = interleave(bags, n)
        vectors = [as_vectors(table, name, self.declarations[name]) for name in self._named(("vector",))]
        vector = np.concatenate(vectors, axis=1) if vectors else np.zeros((n, 0), np.float32)
        return EncodedFeatures(numeric, tokens, token_counts, vector)

    def to_dict(self) -> dict[str, Any]:
        """Return the fitted state as plain JSON values."""
        return {
            "declarations": {name: dataclasses.asdict(declared) for name, declared in self.declarations.items()},
            "scales": {name: list(scale) for name, scale in self.scales.items()},
            "vocabularies": {name: list(values) for name, values in self.vocabularies.items()},
            "text_buckets": self.text_buckets,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> FeaturePreprocessor:
        """Rebuild from `to_dict`."""
        return cls(
            {name: FeatureDeclaration(**declared) for name, declared in state["declarations"].items()},
            {name: (float(mean), float(deviation)) for name, (mean, deviation) in state["scales"].items()},
            {name: tuple(values) for name, values in state["vocabularies"].items()},
            int(state["text_buckets"]),
        )


def collect_statistics(table: pa.Table, declarations: Mapping[str, FeatureDeclaration]) -> FeatureStatistics:
    """Return what one block says about the declared features; NaN and infinite numbers count as missing.

    Raises:
        SchemaError: a declared column is missing or cannot be read as its kind.
    """
    statistics = FeatureStatistics(rows=table.num_rows)
    for name, declaration in declarations.items():
        if declaration.kind in NUMBERS:
            values = as_numbers(table, name, declaration)
            values = values[~np.isnan(values)]
            mean = float(values.mean()) if len(values) else 0.0
            statistics.moments[name] = (len(values), mean, float(np.square(values - mean).sum()))
        elif declaration.kind in TOKENS and declaration.kind != "text":
            _, flat = as_values(table, name, declaration)
            counted = pc.value_counts(flat)
            pairs = zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True)
            statistics.counts[name] = Counter(dict(pairs))
        elif declaration.kind == "vector":
            as_vectors(table.slice(0, 1), name, declaration)
    return statistics


def fit_features(
    statistics: FeatureStatistics,
    declarations: Mapping[str, FeatureDeclaration],
    *,
    text_buckets: int,
    max_vocabulary: int,
) -> FeaturePreprocessor:
    """Turn statistics into scales and vocabularies; of a longer list of values the most frequent stay."""
    scales, vocabularies = {}, {}
    for name, declaration in declarations.items():
        if declaration.kind in NUMBERS:
            n, mean, square = statistics.moments.get(name, (0, 0.0, 0.0))
            deviation = float(np.sqrt(square / n)) if n else 0.0
            scales[name] = (mean, deviation if deviation > 1e-12 * max(1.0, abs(mean)) else 1.0)
        elif declaration.kind in TOKENS and declaration.kind != "text":
            ranked = sorted(statistics.counts.get(name, Counter()).items(), key=lambda pair: (-pair[1], pair[0]))
            vocabularies[name] = tuple(value for value, _ in ranked[:max_vocabulary])
    has_text = any(declaration.kind == "text" for declaration in declarations.values())
    return FeaturePreprocessor(dict(declarations), scales, vocabularies, text_buckets if has_text else 0)


@dataclass(frozen=True)
class Preprocessor:
    """All that was fitted before the towers: the features of both sides, the item ids and the event types.

    item_ids: the items that have an embedding row of their own, row 1 on; every other item is row 0, carried by its
        features. event_types: index 1 on; 0 is a type that was not seen when fitting.
    """

    users: FeaturePreprocessor
    items: FeaturePreprocessor
    item_ids: Sequence[str]
    event_types: Sequence[str]

    @property
    def vocabulary_size(self) -> int:
        """Rows of the table of item ids, the unknown one included."""
        return len(self.item_ids) + 1

    def encode_item_ids(self, item_ids: pa.Array | pa.ChunkedArray) -> Array:
        """item_ids: n strings -> [n] int32, 0 for an id without a row of its own."""
        return index_of(item_ids, pa.array(self.item_ids, pa.string())) + 1

    def encode_event_types(self, event_types: pa.Array | pa.ChunkedArray) -> Array:
        """event_types: n strings or nulls -> [n] int32, 0 for an unknown type."""
        return index_of(event_types, pa.array(self.event_types, pa.string())) + 1

    def to_dict(self) -> dict[str, Any]:
        """Return the fitted state as plain JSON values."""
        return {
            "users": self.users.to_dict(),
            "items": self.items.to_dict(),
            "item_ids": list(self.item_ids),
            "event_types": list(self.event_types),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Preprocessor:
        """Rebuild from `to_dict`.

        Raises:
            BundleError: a part is missing or of the wrong kind.
        """
        try:
            return cls(
                FeaturePreprocessor.from_dict(state["users"]),
                FeaturePreprocessor.from_dict(state["items"]),
                tuple(state["item_ids"]),
                tuple(state["event_types"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"the stored preprocessor cannot be read: {type(error).__name__} {error}") from None
