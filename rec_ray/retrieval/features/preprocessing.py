"""Fitted preprocessing: converts raw feature columns and ids to the numeric input of the towers.

`FeaturePreprocessor` handles the declared features of one side (users or items): blocks of Arrow tables give partial
`FeatureStatistics`, these merge, and `fit_features` computes vocabularies and scales from them. `Preprocessor` adds the
vocabularies of item ids and event types; a bundle stores it.
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
from rec_ray.retrieval.features.number_scales import CLIP, bend, fit_bend, sketch
from rec_ray.schema import FeatureDeclaration

NUMBERS = ("numeric", "timestamp")
TOKENS = ("categorical", "categories", "category_path", "text")

Array = npt.NDArray[Any]


@dataclass
class FeatureStatistics:
    """Statistics of the declared features over one or more blocks; those of several blocks add up."""

    rows: int = 0
    present: dict[str, int] = field(default_factory=dict)
    """Feature -> number of rows with a value, for texts and vectors; other kinds have it in the fields below."""
    sketches: dict[str, list[tuple[Array, float]]] = field(default_factory=dict)
    """Feature -> per block, quantiles of its finite values and the number of values that each represents."""
    vectors: dict[str, tuple[int, Array, float]] = field(default_factory=dict)
    """Feature -> number of vectors that are not zero, their mean, and the sum of squared distances from it."""
    moments: dict[str, tuple[int, float, float]] = field(default_factory=dict)
    """Feature -> number of finite values, their mean, and the sum of squared distances from it."""
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """Feature -> number of occurrences of each value."""

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
        present = Counter(self.present)
        present.update(other.present)
        sketches = dict(self.sketches)
        for name, parts in other.sketches.items():
            sketches[name] = [*sketches.get(name, []), *parts]
        vectors = dict(self.vectors)
        for name, (n_b, centre_b, square_b) in other.vectors.items():
            n_a, centre_a, square_a = vectors.get(name, (0, np.zeros_like(centre_b), 0.0))
            n = max(n_a + n_b, 1)
            apart = centre_b - centre_a
            square = square_a + square_b + float(np.square(apart).sum()) * n_a * n_b / n
            vectors[name] = (n_a + n_b, centre_a + apart * n_b / n, square)
        return FeatureStatistics(self.rows + other.rows, dict(present), sketches, vectors, moments, counts)


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
    """Fitted features of one side.

    Every number becomes two columns: its standardised value and a mark for a missing value. Every field of categories
    or text becomes a bag of tokens in one table shared by the side; token 0 is a value that was not seen when fitting.
    Vectors are centred and scaled by one factor. A feature without any value when fitting stays missing in every later
    row, because its weights are untrained.
    """

    declarations: Mapping[str, FeatureDeclaration]
    scales: Mapping[str, tuple[float, float]]
    """Feature -> mean and standard deviation."""
    vocabularies: Mapping[str, Sequence[str]]
    """Feature -> its values, the most frequent ones first."""
    text_buckets: int = 0
    bends: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Number with heavy tails -> median and unit; `scales` is of asinh((value - median) / unit), which is linear near
    the median and logarithmic far from it."""
    centres: Mapping[str, tuple[Sequence[float], float]] = field(default_factory=dict)
    """Vector -> the mean that is subtracted, and the standard deviation of an entry."""
    absent: tuple[str, ...] = ()
    """Features that had no value when fitting."""

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
        """Feature -> first row of its tokens in the side's table; all texts share the same rows."""
        return self._offsets  # type: ignore[attr-defined]

    @property
    def names(self) -> list[str]:
        """Declared features in encoding order."""
        return list(self.declarations)

    @property
    def shape(self) -> FeatureShape:
        """Widths for the tower of this side."""
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
        for name in self.absent:
            if name in table.column_names:
                nulls = pa.nulls(n, table.schema.field(name).type)
                table = table.set_column(table.schema.get_field_index(name), name, nulls)
        numbers = [as_numbers(table, name, self.declarations[name]) for name in self._named(NUMBERS)]
        numeric = np.zeros((n, 2 * len(numbers)), np.float32)
        for i, (name, values) in enumerate(zip(self._named(NUMBERS), numbers, strict=True)):
            mean, deviation = self.scales[name]
            missing = np.isnan(values)
            if name in self.bends:
                values = bend(values, *self.bends[name])
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
        vectors = [
            self._centred(name, as_vectors(table, name, self.declarations[name])) for name in self._named(("vector",))
        ]
        vector = np.concatenate(vectors, axis=1) if vectors else np.zeros((n, 0), np.float32)
        return EncodedFeatures(numeric, tokens, token_counts, vector)

    def _centred(self, name: str, vectors: Array) -> Array:
        """Subtract the mean and divide by the deviation; a zero vector counts as missing and stays zero."""
        if name not in self.centres:
            return vectors
        centre, deviation = self.centres[name]
        there = vectors.any(axis=1, keepdims=True)
        return np.where(there, (vectors - np.asarray(centre, np.float32)) / np.float32(deviation), 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the fitted state as plain JSON values."""
        return {
            "declarations": {name: dataclasses.asdict(declared) for name, declared in self.declarations.items()},
            # Another key, so that an older program without `bends` does not read these as plain scales.
            "numbers": {name: [*scale, *self.bends.get(name, ())] for name, scale in self.scales.items()},
            "centres": {name: [list(centre), deviation] for name, (centre, deviation) in self.centres.items()},
            "absent": list(self.absent),
            "vocabularies": {name: list(values) for name, values in self.vocabularies.items()},
            "text_buckets": self.text_buckets,
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> FeaturePreprocessor:
        """Rebuild from `to_dict`."""
        # Older bundles have `scales` instead.
        numbers = {name: [float(value) for value in values] for name, values in _numbers_of(state).items()}
        return cls(
            {name: FeatureDeclaration(**declared) for name, declared in state["declarations"].items()},
            {name: (values[0], values[1]) for name, values in numbers.items()},
            {name: tuple(values) for name, values in state["vocabularies"].items()},
            int(state["text_buckets"]),
            {name: (values[2], values[3]) for name, values in numbers.items() if len(values) == 4},
            {
                name: (tuple(float(value) for value in centre), float(deviation))
                for name, (centre, deviation) in state.get("centres", {}).items()
            },
            tuple(state.get("absent", ())),
        )


def _numbers_of(state: Mapping[str, Any]) -> Mapping[str, Sequence[float]]:
    numbers: Mapping[str, Sequence[float]] = state["numbers"] if "numbers" in state else state["scales"]
    return numbers


def collect_statistics(table: pa.Table, declarations: Mapping[str, FeatureDeclaration]) -> FeatureStatistics:
    """Return the statistics of one block; NaN and infinite numbers count as missing.

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
            statistics.sketches[name] = [sketch(values)] if len(values) else []
        elif declaration.kind in TOKENS and declaration.kind != "text":
            _, flat = as_values(table, name, declaration)
            counted = pc.value_counts(flat)
            pairs = zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True)
            statistics.counts[name] = Counter(dict(pairs))
        elif declaration.kind == "text":
            statistics.present[name] = int(as_values(table, name, declaration)[0].astype(bool).sum())
        elif declaration.kind == "vector":
            vectors = as_vectors(table, name, declaration)
            vectors = vectors[vectors.any(axis=1)].astype(np.float64)
            statistics.present[name] = len(vectors)
            centre = vectors.mean(axis=0) if len(vectors) else np.zeros(declaration.length or 0)
            statistics.vectors[name] = (len(vectors), centre, float(np.square(vectors - centre).sum()))
    return statistics


def fit_features(
    statistics: FeatureStatistics,
    declarations: Mapping[str, FeatureDeclaration],
    *,
    text_buckets: int,
    max_vocabulary: int,
) -> FeaturePreprocessor:
    """Fit scales and vocabularies; a vocabulary beyond the size limit keeps the most frequent values."""
    scales, bends, vocabularies, centres, absent = {}, {}, {}, {}, []
    for name, declaration in declarations.items():
        if declaration.kind in NUMBERS:
            n, mean, square = statistics.moments.get(name, (0, 0.0, 0.0))
            present = n
            deviation = float(np.sqrt(square / n)) if n else 0.0
            scales[name] = (mean, deviation if deviation > 1e-12 * max(1.0, abs(mean)) else 1.0)
            heavy = fit_bend(statistics.sketches.get(name, []), deviation)
            if heavy is not None:
                bends[name], scales[name] = heavy
        elif declaration.kind == "vector":
            present, centre, square = statistics.vectors.get(name, (0, np.zeros(declaration.length or 0), 0.0))
            deviation = float(np.sqrt(square / (present * len(centre)))) if present else 0.0
            if deviation > 1e-12:
                centres[name] = (tuple(centre.tolist()), deviation)
        elif declaration.kind == "text":
            present = statistics.present.get(name, 0)
        else:
            ranked = sorted(statistics.counts.get(name, Counter()).items(), key=lambda pair: (-pair[1], pair[0]))
            vocabularies[name] = tuple(value for value, _ in ranked[:max_vocabulary])
            present = len(ranked)
        if not present:
            absent.append(name)
    has_text = any(declaration.kind == "text" for declaration in declarations.values())
    return FeaturePreprocessor(
        dict(declarations), scales, vocabularies, text_buckets if has_text else 0, bends, centres, tuple(absent)
    )


@dataclass(frozen=True)
class Preprocessor:
    """Fitted state of the encoding: the features of both sides, the item ids and the event types.

    item_ids: items with an embedding row of their own, from row 1; every other item has row 0 and is represented by its
        features only. event_types: from index 1; 0 is a type that was not seen when fitting.
    """

    users: FeaturePreprocessor
    items: FeaturePreprocessor
    item_ids: Sequence[str]
    event_types: Sequence[str]

    @property
    def vocabulary_size(self) -> int:
        """Number of rows of the item-id table, including the unknown item."""
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
