"""Manifest of stored candidates: the valid Parquet parts with their sums, and facts about the computation.

Converts between the bytes of `manifest.json` and a frozen `CandidatesManifest`. Reading is strict: unknown keys, other
types and negative counts are refused. Format 1 (without `format_version`) is still read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from rec_ray.errors import DataError, SchemaError
from rec_ray.storage.model_store import MODELS
from rec_ray.storage.object_store import Storage

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
"""Manifest that readers use; it is replaced in one write, after all new parts."""
PENDING = "pending.json"
"""Manifest of candidates that are being computed; it becomes `MANIFEST` when they are complete."""
ITEM_FOLDER, USER_FOLDER, RECOMMENDATION_FOLDER = "item_embeddings", "user_embeddings", "recommendations"
SIMILAR_FOLDER = "similar_items"
TIMELINE_FOLDER = "user_timelines"
"""Folder with the summaries of the timelines that the lists were computed from; increments compare them."""

_STRICT = ConfigDict(extra="forbid", strict=True)
Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Part:
    """One Parquet file. name: relative to its folder. bytes, sha256: None only in candidates of format 1."""

    __pydantic_config__ = _STRICT

    name: str
    rows: Count
    bytes: Count | None = None
    sha256: Sha256 | None = None


@dataclass(frozen=True)
class SearchView:
    """Vectors of one search view. vectors: field of the view -> vector length. encoder: model that made them."""

    __pydantic_config__ = _STRICT

    vectors: Mapping[str, Count]
    encoder: str | None = None


@dataclass(frozen=True)
class CandidatesManifest:
    """Description of stored candidates.

    parts: folder -> its parts. as_of: events up to this instant were read. k: length of a full list. embedding_size:
    vector length; 0 in candidates that contain ids alone. is_increment: lists of some users of a version, no items.
    generation: folder of the parts that were written together; empty in candidates of format 1.
    facts: counts of the computation, for logs. search: push source -> its vectors.
    """

    __pydantic_config__ = _STRICT

    version: str
    parts: Mapping[str, tuple[Part, ...]]
    as_of: datetime | None = None
    k: Count = 0
    items: Count = 0
    users: Count = 0
    similarity: Annotated[str, StringConstraints(pattern="^(cosine|dot)$")] = "cosine"
    embedding_size: Count = 0
    is_increment: bool = False
    generation: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, SearchView] = field(default_factory=dict)
    format_version: Literal[1, 2] = 2

    def rows(self, folder: str) -> int:
        """Return the number of rows of a folder; 0 if there is no such folder."""
        return sum(part.rows for part in self.parts.get(folder, ()))

    @property
    def lists(self) -> int:
        """Number of users with at least one item."""
        return self.rows(RECOMMENDATION_FOLDER) - int(self.facts.get("users_without_items", 0))

    def to_bytes(self) -> bytes:
        """Return the content of `manifest.json`."""
        return json.dumps(dataclasses.asdict(self), indent=1, default=_as_text).encode()


_ADAPTER = TypeAdapter(CandidatesManifest)
_FIELDS = {each.name for each in dataclasses.fields(CandidatesManifest)}


def new_generation() -> str:
    """Return the name of a new generation folder; names sort by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"


def parse_manifest(data: bytes, where: str) -> CandidatesManifest:
    """Return the manifest in these bytes. where: address of the object, for errors.

    Raises:
        DataError: it is no manifest, has a newer format, or is inconsistent.
    """
    try:
        values = json.loads(data)
        found = values.get("format_version", 1)
        if found == 1:
            values = _from_format_1(values)
        elif found != FORMAT_VERSION:
            raise DataError(
                f"{where} has format version {found!r}, this program reads 1 to {FORMAT_VERSION}; upgrade rec_ray"
            )
        manifest = _ADAPTER.validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{_damaged(where)}: {place}: {first['msg']}; {_remedy(where)}") from None
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{_damaged(where)}: it is no JSON object; {_remedy(where)}") from None
    _require_consistent(manifest, where)
    return manifest


def candidates_command(where: str) -> str:
    """Return the command that computes the candidates at a key or address again, with their version."""
    found = re.search(rf"(?:^|/){MODELS}/([^/]+)/(increments/)?", where)
    version = found[1] if found else "VERSION"
    return f"rec-ray candidates {version}{' --since TIME' if found and found[2] else ''}"


def _remedy(where: str) -> str:
    return f"restore it from a backup, or run `{candidates_command(where)}` again"


def _damaged(where: str) -> str:
    return f"the manifest {where} is damaged"


def _from_format_1(values: dict[str, Any]) -> dict[str, Any]:
    """Convert the values of format 1, which had the facts beside the other fields, to format 2."""
    known = {name: value for name, value in values.items() if name in _FIELDS}
    facts = {name: value for name, value in values.items() if name not in _FIELDS}
    return {**known, "facts": {**known.get("facts", {}), **facts}, "format_version": 1}


def _require_consistent(manifest: CandidatesManifest, where: str) -> None:
    """Refuse counts that contradict the parts, and missing sums in a format that requires them."""
    for folder, parts in manifest.parts.items():
        names = [part.name for part in parts]
        if any(not _is_safe(name) for name in (folder, *names)) or len(set(names)) != len(names):
            raise DataError(f"{_damaged(where)}: {folder!r} names a part twice or outside its folder; {_remedy(where)}")
        if manifest.format_version > 1 and any(part.sha256 is None or part.bytes is None for part in parts):
            raise DataError(f"{_damaged(where)}: a part of {folder!r} has no SHA-256 sum or size; {_remedy(where)}")
    counted = [(USER_FOLDER, manifest.users), (RECOMMENDATION_FOLDER, manifest.users)]
    counted += [] if manifest.is_increment else [(ITEM_FOLDER, manifest.items)]
    for folder, expected in counted if manifest.format_version > 1 else ():
        if folder not in manifest.parts or manifest.rows(folder) != expected:
            found = f"{manifest.rows(folder):,} rows instead of {expected:,}"
            raise DataError(f"{_damaged(where)}: {folder!r} has {found}; {_remedy(where)}")


def _is_safe(name: str) -> bool:
    return name.isprintable() and all(part not in ("", ".", "..") for part in name.split("/")) and "\\" not in name


def _as_text(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def read_manifest(storage: Storage, prefix: str, name: str = MANIFEST) -> CandidatesManifest:
    """Return the manifest of complete candidates. prefix: key of their folder.

    Raises:
        DataError: it is missing, because the candidates are incomplete or were never made, or it is damaged.
        StorageError: the store cannot be read.
    """
    return read_with_sum(storage, prefix, name)[0]


def read_with_sum(storage: Storage, prefix: str, name: str = MANIFEST) -> tuple[CandidatesManifest, str]:
    """Return the manifest of complete candidates and its SHA-256 sum; raises as `read_manifest`."""
    key = f"{prefix}/{name}"
    if not storage.exists(key):
        raise DataError(f"{storage.uri(prefix)} holds no complete candidates; run: {candidates_command(prefix)}")
    data = storage.read_bytes(key)
    return parse_manifest(data, storage.uri(key)), hashlib.sha256(data).hexdigest()


def write_manifest(storage: Storage, prefix: str, manifest: CandidatesManifest, name: str = MANIFEST) -> None:
    """Write a manifest atomically: a reader gets the previous one or this one.

    Raises:
        StorageError: it cannot be written.
    """
    storage.write_checked(f"{prefix}/{name}", manifest.to_bytes())


def parts_of(manifest: CandidatesManifest, folder: str) -> tuple[Part, ...]:
    """Return the parts of a folder.

    Raises:
        SchemaError: the manifest does not list it.
    """
    if folder not in manifest.parts:
        raise SchemaError(f"the manifest of the candidates lists no {folder!r}")
    return manifest.parts[folder]


def require_complete(storage: Storage, prefix: str, manifest: CandidatesManifest) -> None:
    """Check that all parts exist, with their sizes if the manifest has them, without reading them.

    Raises:
        DataError: a part is missing or has another size.
        StorageError: the store cannot be read.
    """
    for folder, parts in manifest.parts.items():
        for part in parts:
            key = f"{prefix}/{folder}/{part.name}"
            size = storage.size(key)
            if size is None or part.bytes not in (None, size):
                how = "is missing" if size is None else f"has {size:,} bytes instead of {part.bytes:,}"
                raise DataError(
                    f"candidates are damaged: {storage.uri(key)} {how}; run `{candidates_command(key)}` again"
                )


SEARCH = "search"
"""Folder of the vectors of search views, with one folder per push source."""


def search_folder(source: str) -> str:
    """Return the folder of the vectors of a search view. source: its push source."""
    return f"{SEARCH}/{source}"


def read_parts(storage: Storage, prefix: str, manifest: CandidatesManifest, folder: str) -> pa.Table:
    """Read all parts of a folder; for folders of the size of the catalogue, not of all users.

    Raises:
        SchemaError: the candidates have no such folder.
        DataError: the folder has no parts.
    """
    paths = [storage.path(prefix, folder, part.name) for part in parts_of(manifest, folder)]
    if not paths:
        raise DataError(f"{storage.uri(prefix)} lists no parts of {folder}; run: rec-ray candidates {manifest.version}")
    return pa.concat_tables([pq.read_table(path, filesystem=storage.filesystem) for path in paths])
