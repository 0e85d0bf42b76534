"""Facts of a report as plain values, stored as JSON with the version, so that the page can be rendered again.

`ReportFacts` converts to and from JSON; `facts_of_bundle` derives what a bundle alone provides. Nothing is read from a
store here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from pydantic import TypeAdapter

from rec_ray.contracts import EpochResult, Evaluation, EvaluationFacts
from rec_ray.errors import DataError
from rec_ray.retrieval.features.preprocessing import NUMBERS, FeaturePreprocessor, Preprocessor
from rec_ray.retrieval.json_values import replace_non_finite
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.retrieval.profiles.checks import Check

FORMAT_VERSION = 1
LISTED_VALUES = 4


@dataclass(frozen=True)
class FeatureRow:
    """Feature of a side (user or item). said: description of the state fitted on the training events."""

    side: str
    name: str
    kind: str
    said: str


@dataclass(frozen=True)
class ItemMap:
    """Items in two dimensions: ids and coordinates of the sample, the total number of items, and a caption."""

    item_ids: list[str]
    x: list[float]
    y: list[float]
    total: int
    said: str


@dataclass(frozen=True)
class ReportFacts:
    """Content of a report; a value that was not measured is empty or None.

    names, categories: item id -> text, for the items of the map and of the examples.
    notes: findings about the data, as sentences. settings: with secrets masked. seconds: of each step so far.
    counts: counts of the run by readable name. checks: of the night, see `retrieval.profiles`.
    """

    version: str
    run_id: str = ""
    created_at: str = ""
    data_to: str = ""
    test_start: str = ""
    refit: str = ""
    gate: str = ""
    gate_reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    evaluation: Evaluation | None = None
    epochs: tuple[EpochResult, ...] = ()
    best_epoch: int = 0
    features: tuple[FeatureRow, ...] = ()
    item_map: ItemMap | None = None
    names: dict[str, str] = field(default_factory=dict)
    categories: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()

    def to_json(self) -> bytes:
        """Return the facts as JSON; numbers that are not finite become null."""
        values = {"format_version": FORMAT_VERSION, **asdict(self)}
        return json.dumps(replace_non_finite(values), ensure_ascii=False, allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> ReportFacts:
        """Read stored facts.

        Raises:
            DataError: the facts are damaged or have another format.
        """
        try:
            values = json.loads(data)
            found = values.pop("format_version")
            if found != FORMAT_VERSION:
                raise DataError(
                    f"the stored facts of the report have format {found!r}; this program reads {FORMAT_VERSION}"
                )
            names = {field.name for field in fields(cls)}
            values = {name: value for name, value in values.items() if name in names}
            for name, kind in _TYPED.items():
                if values.get(name):
                    values[name] = TypeAdapter(kind).validate_python(_with_nan(values[name]))
                else:
                    values.pop(name, None)
            return cls(**values)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise DataError(f"the stored facts of the report cannot be read: {error}") from error


_TYPED: dict[str, Any] = {
    "evaluation": Evaluation,
    "epochs": tuple[EpochResult, ...],
    "features": tuple[FeatureRow, ...],
    "item_map": ItemMap,
    "checks": tuple[Check, ...],
}
"""Fields of `ReportFacts` that JSON holds as plain values -> their types."""


def facts_of_bundle(bundle: TwoTowerBundle, version: str) -> dict[str, Any]:
    """Derive facts from the metadata of a stored model, as arguments of `ReportFacts`."""
    metadata = bundle.metadata
    metrics = metadata.get("metrics") or {}
    evaluation = None
    if metrics:
        facts = TypeAdapter(EvaluationFacts).validate_python(metadata.get("evaluation") or {})
        evaluation = Evaluation(metrics, 0, facts.targets, facts=facts)
    return {
        "version": version,
        "run_id": str(metadata.get("run_id") or ""),
        "created_at": str(metadata.get("created_at") or ""),
        "data_to": str(metadata.get("data_to") or ""),
        "test_start": str(metadata.get("test_start") or ""),
        "refit": str(metadata.get("refit") or ""),
        "evaluation": evaluation,
        "epochs": TypeAdapter(tuple[EpochResult, ...]).validate_python(metadata.get("epochs") or ()),
        "best_epoch": int(metadata.get("best_epoch") or 0),
        "features": describe_features(bundle.preprocessor),
        "settings": dict(metadata.get("settings") or {}),
        "packages": dict(metadata.get("packages") or {}),
    }


def describe_features(preprocessor: Preprocessor) -> tuple[FeatureRow, ...]:
    """Return one row per feature, with a description of the state fitted on the training events."""
    sides = (("user", preprocessor.users), ("item", preprocessor.items))
    return tuple(
        FeatureRow(side, name, declaration.kind, _describe(fitted, name))
        for side, fitted in sides
        for name, declaration in fitted.declarations.items()
    )


def _describe(fitted: FeaturePreprocessor, name: str) -> str:
    declaration = fitted.declarations[name]
    if declaration.kind in NUMBERS:
        mean, deviation = fitted.scales[name]
        unit = " days since 1970" if declaration.kind == "timestamp" else ""
        return f"mean {mean:,.4g}{unit}, standard deviation {deviation:,.4g}"
    if declaration.kind == "text":
        return f"words and character trigrams, hashed into {fitted.text_buckets:,} buckets"
    if declaration.kind == "vector":
        return f"{declaration.length:,} numbers"
    values = list(fitted.vocabularies[name])
    first = ", ".join(values[:LISTED_VALUES])
    if len(values) <= LISTED_VALUES:
        return f"{len(values):,} values: {first}" if values else "no value"
    return f"{len(values):,} values; most often {first}"


_WITHOUT_VALUE = {each.name for each in fields(EvaluationFacts) if each.default is None} | {"measured", "limit"}


def _with_nan(value: Any, name: str = "") -> Any:
    """Undo `replace_non_finite`: null is a number that is not finite, except in facts that may have no value."""
    if value is None and name not in _WITHOUT_VALUE:
        return math.nan
    if isinstance(value, Mapping):
        return {key: _with_nan(entry, key) for key, entry in value.items()}
    return [_with_nan(entry) for entry in value] if isinstance(value, list) else value
