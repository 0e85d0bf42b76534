"""Exceptions that the program raises on purpose, each with the exit code of the process.

The message of an exception is one line: expected, found, and the command or setting to try. `cli` and the job scripts
print it on standard error and exit with the code. This module imports no other module of the package.

    RecRayError                    1  a bug or an unexpected fault
    ├── ConfigError                2  wrong command, setting or settings file: do not retry
    ├── UnavailableError           3  a store, database, registry or cluster cannot be reached: retry
    │   ├── FeatureStoreError         ... the Feast registry, its offline or its online store
    │   └── StorageError              ... the object store (a folder or S3)
    ├── DataError                  4  the data cannot be used
    │   ├── SchemaError               ... a table lacks a column or has it with another type
    │   ├── EmptyDataError            ... no row is left to learn from
    │   └── BundleError               ... a stored model is incomplete, damaged or of another format
    ├── GateError                  5  the quality gate refused the model; it is stored and not published
    ├── PartlyPublishedError       6  some rows reached Feast and some did not; run `rec-ray publish` again
    └── LockedError                7  another run of this project is publishing
"""

from __future__ import annotations

from collections.abc import Iterable


class RecRayError(Exception):
    """Base class of all exceptions that rec_ray raises on purpose.

    `str` returns the original message, because Ray Data (2.60) adds advice on retries to the arguments of every
    exception that leaves one of its tasks.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class ConfigError(RecRayError):
    """A command, a setting or the settings file is wrong."""

    exit_code = 2


class UnavailableError(RecRayError):
    """A service outside the process cannot be reached."""

    exit_code = 3


class FeatureStoreError(UnavailableError):
    """Feast's registry, offline store or online store failed or returned an unusable answer."""


class StorageError(UnavailableError):
    """The object store could not be read or written."""


class DataError(RecRayError):
    """The data cannot be used for this command."""

    exit_code = 4


class SchemaError(DataError):
    """A table lacks a column or carries it with another type."""


class EmptyDataError(DataError):
    """No row is left to process."""


class BundleError(DataError):
    """A stored model is incomplete, damaged, or written by another format version."""


class GateError(RecRayError):
    """The quality gate refused to publish the model."""

    exit_code = 5


class PartlyPublishedError(RecRayError):
    """Some rows reached the feature store and some did not."""

    exit_code = 6


class LockedError(RecRayError):
    """Another run holds the publishing lock of this project."""

    exit_code = 7


EXIT_CODES: dict[int, str] = {
    0: "done",
    1: "unexpected fault",
    2: "wrong command or configuration",
    3: "a store or service cannot be reached",
    4: "unusable data",
    5: "refused by the quality gate",
    6: "partly published",
    7: "another run holds the lock",
    8: "rec-ray check found a fault",
}


def find_known_cause(error: BaseException) -> BaseException:
    """Return the `RecRayError` that a Ray task raised and `error` wraps; without one, `error` itself."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RecRayError):
            inner = getattr(seen, "cause", None)
            return inner if isinstance(inner, RecRayError) else seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return error


def list_names(names: Iterable[object], limit: int = 8) -> str:
    """Return the names for an error message, cut at `limit`: `'a', 'b' and 3 more`."""
    texts = [repr(str(name)) for name in names]
    if len(texts) <= limit:
        return ", ".join(texts) if texts else "none"
    return f"{', '.join(texts[:limit])} and {len(texts) - limit} more"
