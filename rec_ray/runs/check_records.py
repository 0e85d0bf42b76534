"""Checks and data profiles of versions as files below the folder of each version.

`checks.json` has the checks of all groups of a version; `profile.json` has the statistics with which the next night
compares its data. Both are small and are written before the first row is pushed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from rec_ray.errors import DataError
from rec_ray.retrieval.json_values import replace_non_finite
from rec_ray.retrieval.profiles.checks import Check
from rec_ray.retrieval.profiles.data_profile import PROFILE, DataProfile
from rec_ray.storage.model_store import model_folder
from rec_ray.storage.object_store import Storage

CHECKS = "checks.json"
FORMAT_VERSION = 1


def read_checks(storage: Storage, version: str) -> list[Check]:
    """Return the recorded checks of a version; none for a version of an earlier program.

    Raises:
        DataError: the file is damaged.
    """
    key = f"{model_folder(version)}/{CHECKS}"
    if not storage.exists(key):
        return []
    try:
        values = json.loads(storage.read_bytes(key))
        return [Check(**each) for each in values["checks"]] if values["format_version"] == FORMAT_VERSION else []
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{storage.uri(key)} is damaged: {type(error).__name__}: {error}") from None


def record_checks(storage: Storage, version: str, groups: Sequence[str], checks: Sequence[Check]) -> None:
    """Replace the recorded checks of some groups; the group is the first part of a name, such as `data`."""
    try:
        kept = [each for each in read_checks(storage, version) if each.name.partition(".")[0] not in groups]
    except DataError:
        kept = []
    values = {"format_version": FORMAT_VERSION, "version": version, "checks": as_values([*kept, *checks])}
    storage.write_bytes(f"{model_folder(version)}/{CHECKS}", json.dumps(values, indent=1).encode())


def as_values(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Return checks as JSON values; a number that is not finite becomes null."""
    values: list[dict[str, Any]] = replace_non_finite([dataclasses.asdict(each) for each in checks])
    return values


def read_profile(storage: Storage, version: str) -> DataProfile | None:
    """Return the profile of the data of a version; None for a version of an earlier program.

    Raises:
        DataError: the file is damaged or of a later program.
    """
    key = f"{model_folder(version)}/{PROFILE}"
    return DataProfile.from_json(storage.read_bytes(key), storage.uri(key)) if storage.exists(key) else None


def write_profile(storage: Storage, version: str, profile: DataProfile) -> None:
    """Store the profile of the data of a version."""
    storage.write_bytes(f"{model_folder(version)}/{PROFILE}", profile.to_json())
