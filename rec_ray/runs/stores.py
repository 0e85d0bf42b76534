"""Object store and version database, opened from the settings.

Input: settings. Output: a `Storage` or a `VersionDatabase`. The module imports neither Feast nor Ray, whose import
takes seconds, so that commands that only read versions start quickly.
"""

from __future__ import annotations

from rec_ray.config import Settings
from rec_ray.storage.object_store import Storage, open_storage
from rec_ray.versions.registry import VersionDatabase


def open_object_store(settings: Settings) -> Storage:
    """Open the object store of the settings."""
    given = settings.storage
    return open_storage(
        given.url,
        endpoint=given.endpoint,
        region=given.region,
        ca_bundle=given.ca_bundle,
        access_key=given.access_key.get_secret_value() if given.access_key else None,
        secret_key=given.secret_key.get_secret_value() if given.secret_key else None,
    )


def open_version_database(settings: Settings) -> VersionDatabase:
    """Open the version database of the settings."""
    given = settings.database
    password = given.password.get_secret_value() if given.password else None
    return VersionDatabase(given.url, password, given.schema_name)
