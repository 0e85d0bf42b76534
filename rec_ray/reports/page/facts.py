"""Facts of a report as plain values, stored as JSON with the version, so that the page can be rendered again.

`ReportFacts` converts to and from JSON; `facts_of_bundle` derives what a bundle alone provides. Nothing is read from a
store here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from rec_ray.contracts import Evaluation, EvaluationFacts
from rec_ray.errors import DataError
from rec_ray.retrieval.features.preprocessing import NUMBERS, FeaturePreprocessor, Preprocessor
from rec_ray.retrieval.json_values import replace_non_finite
from rec_ray.retrieval.model.bundle import TwoTowerBundle

FORMAT_VERSION = 1
SHOWN_VALUES = 4


@dataclass(frozen=True)
class ReportFacts:
    """Content of a report; a value that was not measured is empty.

    evaluation: `Evaluation` as plain values. epochs: `EpochResult`s as plain values.
    features: rows with `side`, `name`, `kind` and `said`, a description of the fitted state.
    item_map: `item_ids`, `x`, `y`, the `total` number of items and `said`, a caption.
    names, categories: item id -> text, for the items of the map and of the examples.
    warnings: sentences about the data. settings: with secrets masked. seconds: of each step so far.
    counts: counts of the run by readable name.
    """

    version: str
    run_id: str = ""
    created_at: str = ""
    data_to: str = ""
    test_start: str = ""
    refit: str = ""
    gate: str = ""
    gate_reasons: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    features: list[dict[str, str]] = field(default_factory=list)
    item_map: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    categories: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """Return the facts as JSON; numbers that are not finite become null."""
        values = {"format_version": FORMAT_VERSION, **asdict(self)}
        return json.dumps(replace_non_finite(values), ensure_ascii=False, allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> ReportFacts:
        """Read stored facts.

        Raises:
            DataError: the format is another one.
        """
        try:
            values = json.loads(data)
            found = values.pop("format_version")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise DataError(f"the stored facts of the report cannot be read: {error}") from error
        if found != FORMAT_VERSION:
            raise DataError(
                f"the stored facts of the report have format {found!r}; this program reads {FORMAT_VERSION}"
            )
        names = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in names})


def facts_of_bundle(bundle: TwoTowerBundle, version: str) -> dict[str, Any]:
    """Derive facts from the metadata of a stored model, as arguments of `ReportFacts`."""
    metadata = bundle.metadata
    metrics = metadata.get("metrics") or {}
    evaluation = Evaluation({}, 0, 0)
    if metrics:
        stored = metadata.get("evaluation") or {}
        known = {each.name: stored[each.name] for each in fields(EvaluationFacts) if each.name in stored}
        facts = EvaluationFacts(**known)
        evaluation = Evaluation(metrics, 0, facts.targets, facts=facts)
    return {
        "version": version,
        "run_id": str(metadata.get("run_id") or ""),
        "created_at": str(metadata.get("created_at") or ""),
        "data_to": str(metadata.get("data_to") or ""),
        "test_start": str(metadata.get("test_start") or ""),
        "refit": str(metadata.get("refit") or ""),
        "evaluation": asdict(evaluation) if metrics else {},
        "epochs": list(metadata.get("epochs") or []),
        "best_epoch": int(metadata.get("best_epoch") or 0),
        "features": describe_features(bundle.preprocessor),
        "settings": dict(metadata.get("settings") or {}),
        "packages": dict(metadata.get("packages") or {}),
    }


def describe_features(preprocessor: Preprocessor) -> list[dict[str, str]]:
    """Return one row per feature: side, name, kind, and a description of the state fitted on the training events."""
    sides = (("user", preprocessor.users), ("item", preprocessor.items))
    return [
        {"side": side, "name": name, "kind": declaration.kind, "said": _describe(fitted, name)}
        for side, fitted in sides
        for name, declaration in fitted.declarations.items()
    ]


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
    shown = ", ".join(values[:SHOWN_VALUES])
    if len(values) <= SHOWN_VALUES:
        return f"{len(values):,} values: {shown}" if values else "no value"
    return f"{len(values):,} values; most often {shown}"
