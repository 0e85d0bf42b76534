"""What a step hands over as files, so that a run that starts again need not do a finished step once more.

A hand-over comes in and named files go out as bytes, and the other way round; it is safetensors and JSON, nothing is
pickled. It does not know where the files are kept, which step they belong to, or when they are read again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from rec_ray.contracts import RowCounts, SplitTimes, TrainingData
from rec_ray.errors import BundleError, DataError
from rec_ray.retrieval.bundle import TwoTowerBundle
from rec_ray.retrieval.preprocessing import Preprocessor

Result = TypeVar("Result")
RECORD = "record.json"


def to_files(result: Any) -> dict[str, bytes]:
    """Return the files of a bundle, of the training data, or of a hand-over that is plain values."""
    if isinstance(result, TwoTowerBundle):
        return result.to_files()
    if isinstance(result, TrainingData):
        values = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
        values["preprocessor"] = result.preprocessor.to_dict()
        values |= {name: dataclasses.asdict(values[name]) for name in ("split_times", "rows")}
    else:
        values = dataclasses.asdict(result)
    return {RECORD: json.dumps(values, default=_as_text).encode()}


def from_files(kind: type[Result], files: Mapping[str, bytes]) -> Result:
    """Make a hand-over of its files.

    Raises:
        DataError: the files are not those of such a hand-over.
    """
    if kind is TwoTowerBundle:
        return cast(Result, TwoTowerBundle.from_files(files))
    try:
        values = json.loads(files[RECORD])
        if kind is TrainingData:
            values["preprocessor"] = Preprocessor.from_dict(values["preprocessor"])
            values["split_times"] = TypeAdapter(SplitTimes).validate_python(values["split_times"])
            values["rows"] = RowCounts(**values["rows"])
            return cast(Result, TrainingData(**values))
        return TypeAdapter(kind).validate_python(values)
    except (KeyError, TypeError, ValueError, BundleError, ValidationError) as error:
        raise DataError(f"the record is no {kind.__name__}: {error}") from error


def _as_text(value: Any) -> str:
    """Return an instant as text; everything else that JSON has no word for is a fault of ours."""
    return str(value.isoformat())
