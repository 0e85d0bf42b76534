"""Every error the program raises on purpose, and the exit code each one ends the process with.

A step raises one of these with a message that says what was expected, what came and what to do; `cli` and the job
scripts turn it into one line on standard error and the exit code. This module knows no other module.

    RecRayError                    1  a bug or an unforeseen fault
    ├── ConfigError                2  wrong command, setting or settings file: do not retry
    ├── UnavailableError           3  a store, database, registry or cluster cannot be reached: retry
    │   ├── FeatureStoreError         ... the Feast registry, its offline or its online store
    │   └── StorageError              ... the object store (a folder or S3)
    ├── DataError                  4  the data cannot be used
    │   ├── SchemaError               ... a table lacks a column or has it with another type
    │   ├── EmptyDataError            ... nothing is left to learn from
    │   └── BundleError               ... a stored model is incomplete, damaged or of another format
    ├── GateError                  5  the quality gate refused the model; it is stored and not published
    ├── PartlyPublishedError       6  some rows reached Feast and some did not; run `rec-ray publish` again
    └── LockedError                7  another run of this project is publishing
"""

from __future__ import annotations

from collections.abc import Iterable


class RecRayError(Exception):
    """Base of all errors that rec_ray raises on purpose.

    The text is what it was raised with: Ray Data (2.60) puts advice on retries into the arguments of every error that
    leaves one of its tasks.
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
    """Something outside the process cannot be reached."""

    exit_code = 3


class FeatureStoreError(UnavailableError):
    """Feast's registry, offline store or online store did not answer as asked."""


class StorageError(UnavailableError):
    """The object store could not be read or written."""


class DataError(RecRayError):
    """The data cannot be used for what was asked."""

    exit_code = 4


class SchemaError(DataError):
    """A table lacks a column or carries it with another type."""


class EmptyDataError(DataError):
    """No row is left to work on."""


class BundleError(DataError):
    """A stored model is incomplete, damaged, or written by another format version."""


class GateError(RecRayError):
    """The quality gate refused to publish the model."""

    exit_code = 5


class PartlyPublishedError(RecRayError):
    """Only a part of the rows reached the feature store."""

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
}


def foreseen_cause(error: BaseException) -> BaseException:
    """Return the error that a Ray task raised on purpose, if there is one below `error`, else `error` itself."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RecRayError):
            inner = getattr(seen, "cause", None)
            return inner if isinstance(inner, RecRayError) else seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return error


def listed(names: Iterable[object], limit: int = 8) -> str:
    """Return the names as one short phrase for an error message: `'a', 'b' and 3 more`."""
    texts = [repr(str(name)) for name in names]
    if len(texts) <= limit:
        return ", ".join(texts) if texts else "none"
    return f"{', '.join(texts[:limit])} and {len(texts) - limit} more"
