"""Results of steps as files, so that a resumed run does not repeat a finished step.

Converts between a result and named files as bytes, in safetensors and JSON, without pickle. The ledger stores the
files.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from rec_ray.contracts import EpochResult, RowCounts, TrainedModel, TrainingData, TrainingFacts
from rec_ray.errors import BundleError, DataError
from rec_ray.retrieval.features.preprocessing import Preprocessor
from rec_ray.retrieval.model.bundle import WEIGHTS, TwoTowerBundle
from rec_ray.schema import SplitTimes

Result = TypeVar("Result")
RECORD = "record.json"
CHECKED = "checked.safetensors"
"""Weights for the refit check, stored beside the files of the bundle to publish."""


def to_files(result: Any) -> dict[str, bytes]:
    """Return the files of a trained model, of training data, or of a result of plain values."""
    values: dict[str, Any]
    if isinstance(result, TrainedModel):
        files = result.published.to_files()
        if result.checked is not None:
            files[CHECKED] = result.checked.to_files()[WEIGHTS]
        values = {
            "epochs": [dataclasses.asdict(epoch) for epoch in result.epochs],
            "facts": dataclasses.asdict(result.facts),
        }
        return files | {RECORD: json.dumps({**values, "best_epoch": result.best_epoch}).encode()}
    if isinstance(result, TrainingData):
        values = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
        values["preprocessor"] = result.preprocessor.to_dict()
        values |= {name: dataclasses.asdict(values[name]) for name in ("split_times", "rows")}
    else:
        values = dataclasses.asdict(result)
    return {RECORD: json.dumps(values, default=_as_text).encode()}


def from_files(kind: type[Result], files: Mapping[str, bytes]) -> Result:
    """Rebuild a result from its files.

    Raises:
        DataError: the files are not those of such a result.
    """
    try:
        values = json.loads(files[RECORD])
        if kind is TrainedModel:
            return cast(Result, _trained_model(values, files))
        if kind is TrainingData:
            values["preprocessor"] = Preprocessor.from_dict(values["preprocessor"])
            values["split_times"] = TypeAdapter(SplitTimes).validate_python(values["split_times"])
            values["rows"] = RowCounts(**values["rows"])
            values["notes"] = tuple(values.get("notes", ()))
            return cast(Result, TrainingData(**values))
        return TypeAdapter(kind).validate_python(values)
    except (KeyError, TypeError, ValueError, RecursionError, BundleError, ValidationError) as error:
        raise DataError(f"the record is no {kind.__name__}: {error}") from error


def _trained_model(values: Mapping[str, Any], files: Mapping[str, bytes]) -> TrainedModel:
    parts = {name: data for name, data in files.items() if name not in (RECORD, CHECKED)}
    published = TwoTowerBundle.from_files(parts)
    bundle = published
    if published.evaluated is not None:
        bundle = dataclasses.replace(published, model=published.evaluated, evaluated=None)
    checked = None
    if CHECKED in files:
        checked = TwoTowerBundle.from_files({**parts, WEIGHTS: files[CHECKED]}).without_evaluated()
    epochs = tuple(EpochResult(**epoch) for epoch in values["epochs"])
    return TrainedModel(bundle, epochs, values["best_epoch"], published, checked, TrainingFacts(**values["facts"]))


def _as_text(value: Any) -> str:
    """Return an instant as text; any other type without a JSON form is a programming error."""
    return str(value.isoformat())
