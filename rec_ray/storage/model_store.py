"""Trained models in the object store, one folder per version; only complete and unchanged models are returned.

Input: a bundle and a version. Output: a `StoredModel`, and later the bundle again. `two-tower/<version>/` contains the
files of the bundle and, written last, `manifest.json` with their SHA-256 sums. The bundle itself checks the content of
the files.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from rec_ray.contracts import StoredModel
from rec_ray.errors import BundleError, DataError, list_names
from rec_ray.schema import BUNDLE_METADATA as METADATA
from rec_ray.storage.object_store import Storage

if TYPE_CHECKING:
    from rec_ray.retrieval.model.bundle import TwoTowerBundle

FORMAT_VERSION = 1
MODELS = "two-tower"
MANIFEST = "manifest.json"
CANDIDATES = "candidates"


def model_folder(version: str) -> str:
    """Return the key of the folder of a version.

    Raises:
        BundleError: the text is no valid version.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,49}", version):
        raise BundleError(f"{version!r} is no model version; versions are numbers, see `rec-ray versions`")
    return f"{MODELS}/{version}"


def candidates_folder(version: str) -> str:
    """Return the key of the candidates of a version.

    Raises:
        BundleError: the text is no valid version.
    """
    return f"{model_folder(version)}/{CANDIDATES}"


def stored_versions(storage: Storage) -> list[str]:
    """Return the names of all folders of versions, the highest number first.

    Raises:
        StorageError: the store cannot be read.
    """
    return sorted(storage.folders(MODELS), key=lambda name: (name.isdecimal(), len(name), name), reverse=True)


def has_model_files(version: str, storage: Storage) -> bool:
    """Return whether the upload of a version's model has begun.

    Raises:
        StorageError: the store cannot be read.
    """
    return any(key.endswith((MANIFEST, ".safetensors")) for key in storage.list(model_folder(version)))


def save_model(bundle: TwoTowerBundle, version: str, storage: Storage) -> StoredModel:
    """Store a bundle under a version; the manifest is written last, so an interrupted upload is not a model.

    The same bundle may be saved again under its version. Files of an interrupted upload are overwritten.

    Raises:
        BundleError: the version exists with other content, or the bundle cannot be written.
        StorageError: the store cannot be written, or reports another size than was sent.
    """
    folder = model_folder(version)
    files = bundle.to_files()
    sums = {name: {"sha256": _sha256(data), "bytes": len(data)} for name, data in sorted(files.items())}
    if storage.size(f"{folder}/{MANIFEST}") is not None and _read_manifest(version, storage)[0] != sums:
        raise BundleError(
            f"version {version} is already stored at {storage.uri(folder)} with other content and is never "
            "overwritten; run again to get a new version"
        )
    manifest = {"format_version": FORMAT_VERSION, "version": version, "files": sums}
    data = (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()
    for name, content in files.items():
        storage.write_checked(f"{folder}/{name}", content)
    storage.write_checked(f"{folder}/{MANIFEST}", data)
    return StoredModel(version, storage.uri(folder), _sha256(data))


def find_model(version: str, storage: Storage) -> StoredModel:
    """Return the record of a stored model after checking that all its files exist with their sizes.

    Raises:
        BundleError: there is no such version, or it is incomplete.
        StorageError: the store cannot be read.
    """
    sums, manifest = _read_manifest(version, storage)
    for name, entry in sums.items():
        _check_size(version, name, entry["bytes"], storage)
    return StoredModel(version, storage.uri(model_folder(version)), _sha256(manifest))


def verify_model(version: str, storage: Storage) -> StoredModel:
    """Return the record of a stored model after comparing every file with its sum; nothing is loaded.

    Raises:
        BundleError: there is no such version, it is incomplete, or a file was changed.
        StorageError: the store cannot be read.
    """
    sums, manifest = _read_manifest(version, storage)
    for name, entry in sums.items():
        _read_checked(version, name, entry, storage)
    return StoredModel(version, storage.uri(model_folder(version)), _sha256(manifest))


def newest_version(storage: Storage) -> str:
    """Return the complete stored version with the highest number.

    Raises:
        DataError: none is stored.
        StorageError: the store cannot be read.
    """
    for version in stored_versions(storage):
        if version.isdecimal() and storage.exists(f"{model_folder(version)}/{MANIFEST}"):
            return version
    raise DataError(f"no model is stored at {storage.uri(MODELS)}; run `rec-ray train` or `rec-ray run` first")


def read_metadata(version: str, storage: Storage) -> dict[str, Any]:
    """Return the metadata of a stored model without its weights, as a rollback needs them.

    Raises:
        BundleError: there is no such version, it is incomplete, or the file was changed.
        StorageError: the store cannot be read.
    """
    sums = _read_manifest(version, storage)[0]
    if METADATA not in sums:
        raise BundleError(_damaged(version, METADATA, "is not in the manifest", storage))
    try:
        metadata: dict[str, Any] = dict(json.loads(_read_checked(version, METADATA, sums[METADATA], storage)))
    except (ValueError, TypeError, RecursionError):
        raise BundleError(_damaged(version, METADATA, "is no JSON object", storage)) from None
    return metadata


def load_model(version: str, storage: Storage) -> TwoTowerBundle:
    """Load a model; every file is compared with its sum before it is parsed.

    Raises:
        BundleError: there is no such version, a file is missing or was changed, or the format differs.
        StorageError: the store cannot be read.
    """
    # Importing torch takes seconds, and commands that only list versions need no model.
    from rec_ray.retrieval.model.bundle import TwoTowerBundle

    folder = model_folder(version)
    files = {}
    for name, entry in _read_manifest(version, storage)[0].items():
        files[name] = _read_checked(version, name, entry, storage)
    try:
        return TwoTowerBundle.from_files(files)
    except BundleError as error:
        raise BundleError(f"version {version} at {storage.uri(folder)}: {error}") from error


def _read_manifest(version: str, storage: Storage) -> tuple[dict[str, dict[str, Any]], bytes]:
    """Return the sums by file name and the bytes of the manifest."""
    folder = model_folder(version)
    key = f"{folder}/{MANIFEST}"
    if storage.size(key) is None:
        if storage.list(folder):
            raise BundleError(
                f"version {version} at {storage.uri(folder)} has no {MANIFEST}: its upload was interrupted; train again"
            )
        there = [name for name in storage.folders(MODELS) if storage.size(f"{MODELS}/{name}/{MANIFEST}") is not None]
        raise BundleError(
            f"there is no version {version!r} in {storage.uri(MODELS)}; there are {list_names(there)}. "
            "Is storage.url that of the training?"
        )
    data = storage.read_bytes(key)
    try:
        manifest = json.loads(data)
        found = manifest["format_version"]
        if found != FORMAT_VERSION:
            raise BundleError(
                f"{storage.uri(key)} is of format version {found!r}, this program reads {FORMAT_VERSION}; "
                "use the rec_ray that wrote the model, or train again"
            )
        sums: dict[str, dict[str, Any]] = {
            str(name): {"sha256": str(entry["sha256"]), "bytes": int(entry["bytes"])}
            for name, entry in manifest["files"].items()
        }
        if manifest["version"] != version:
            raise BundleError(
                f"{storage.uri(key)} belongs to version {manifest['version']!r}; was the folder copied or renamed?"
            )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BundleError(_damaged(version, MANIFEST, "is no manifest", storage)) from None
    return sums, data


def _read_checked(version: str, name: str, entry: dict[str, Any], storage: Storage) -> bytes:
    _check_size(version, name, entry["bytes"], storage)
    data = storage.read_bytes(f"{model_folder(version)}/{name}")
    if _sha256(data) != entry["sha256"]:
        raise BundleError(_damaged(version, name, "does not have the SHA-256 sum of the manifest", storage))
    return data


def _check_size(version: str, name: str, expected: int, storage: Storage) -> None:
    size = storage.size(f"{model_folder(version)}/{name}")
    if size != expected:
        found = "is missing" if size is None else f"has {size:,} bytes instead of {expected:,}"
        raise BundleError(_damaged(version, name, found, storage))


def _damaged(version: str, name: str, how: str, storage: Storage) -> str:
    return (
        f"version {version} is damaged: {name} in {storage.uri(model_folder(version))} {how}; "
        "restore the folder from a backup, or publish another version"
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def remove_version(version: str, storage: Storage) -> None:
    """Remove a version with its candidates; manifests first, so that a partly removed version is not a model.

    Raises:
        BundleError: the text is no valid version.
        StorageError: the store cannot be written.
    """
    folder = model_folder(version)
    for key in (f"{folder}/{MANIFEST}", f"{folder}/{CANDIDATES}/{MANIFEST}", folder):
        storage.delete_prefix(key)
