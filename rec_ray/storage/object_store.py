"""Object store: a local folder, or S3 (MinIO and others) through pyarrow. All storage is built here.

Input: a store address and its credentials. Output: a `Storage`, with which every step and every Ray task reads and
writes below one root: small objects by key, large ones through `storage.filesystem` and `storage.path`. Messages never
contain an access key.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow.fs as pafs

from rec_ray.errors import ConfigError, StorageError
from rec_ray.storage.atomic_write import is_partial, write_atomically

RETRY_ATTEMPTS = 8
"""Attempts per S3 request; with pyarrow's exponential back-off and jitter they last half a minute."""

PROBE_SECONDS = 5.0
"""Seconds that `check_writable` waits for the endpoint to accept a connection."""

Names = list[str]
"""Keys or names of folders, sorted. Alias: the method `list` shadows the builtin in annotations."""

_REMEDIES = (
    ("certificate", "name the authority's certificate in storage.ca_bundle, or use http:// if the server has no TLS"),
    ("NETWORK_CONNECTION", "is the endpoint right and the server running?"),
    ("NO_SUCH_BUCKET", "create the bucket first; rec_ray never creates it"),
    ("bucket does not exist", "create the bucket first; rec_ray never creates it"),
    ("INVALID_ACCESS_KEY_ID", "check REC_RAY__STORAGE__ACCESS_KEY"),
    ("SIGNATURE", "check REC_RAY__STORAGE__SECRET_KEY and storage.region"),
    ("ACCESS_DENIED", "check the access keys and their rights on this bucket"),
    ("errno 13", "give this user the right to write there or set storage.url to another folder"),
    ("errno 17", "a part of the path is a file; set storage.url to a folder"),
    ("errno 20", "a part of the path is a file; set storage.url to a folder"),
    ("errno 28", "the disk is full; make room or run `rec-ray versions prune`"),
    ("errno 30", "the file system is read-only; set storage.url to another folder"),
)


@dataclass(frozen=True, repr=False)
class Storage:
    """Root in a file system; can be passed to Ray tasks.

    Keys are addresses below the root with `/` between the parts, such as `two-tower/3/manifest.json`.

    filesystem: file system with which pyarrow, Ray Data and Ray Train read and write.
    root: the folder, or `bucket/prefix`, as `filesystem` writes it.
    endpoint: address of the S3 server, for messages; None for a folder and for AWS.
    """

    filesystem: pafs.FileSystem
    root: str
    endpoint: str | None = None
    _secrets: tuple[str, ...] = field(default=(), compare=False)

    def __repr__(self) -> str:
        return f"Storage({self.uri()!r}{f' at {self.endpoint}' if self.endpoint else ''})"

    @property
    def is_folder(self) -> bool:
        """True if the store is a folder of this machine."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def path(self, *parts: str) -> str:
        """Return the path of a key for `filesystem`; without parts, the root.

        Raises:
            StorageError: a part is absolute or empty, or points outside the root.
        """
        key = "/".join(_checked(part) for part in parts)
        return f"{self.root.rstrip('/')}/{key}" if key else self.root

    def uri(self, *parts: str) -> str:
        """Return the address of a key for messages and records: `s3://bucket/prefix/key` or an absolute path.

        Raises:
            StorageError: as in `path`.
        """
        return self.path(*parts) if self.is_folder else f"s3://{self.path(*parts)}"

    def read_bytes(self, key: str) -> bytes:
        """Return an object.

        Raises:
            StorageError: it does not exist or cannot be read.
        """
        path = self.path(key)
        with self._trying("read", key), self.filesystem.open_input_stream(path) as stream:
            return bytes(stream.read())

    def write_bytes(self, key: str, data: bytes | memoryview) -> None:
        """Write an object atomically: a reader sees the complete new object or the previous one.

        Raises:
            StorageError: it cannot be written; nothing is left behind.
        """
        path = self.path(key)
        if path == self.root:
            raise StorageError(f"an object needs a name below {self.uri()}; got an empty key")
        with self._trying("write", key):
            if self.is_folder:
                write_atomically(Path(path), data)
            else:
                with self.filesystem.open_output_stream(path) as stream:
                    stream.write(data)

    def write_checked(self, key: str, data: bytes | memoryview) -> None:
        """Write an object and compare the size that the store reports.

        Raises:
            StorageError: it cannot be written, or its stored size differs.
        """
        self.write_bytes(key, data)
        size = self.size(key)
        if size != len(data):
            raise StorageError(f"{self.uri(key)} has {size} bytes after writing {len(data):,}; run again")

    def size(self, key: str) -> int | None:
        """Return the size of an object in bytes, or None if there is no object of this key.

        Raises:
            StorageError: the store does not respond.
        """
        info = self._info(key)
        return int(info.size) if info.type == pafs.FileType.File else None

    def exists(self, key: str) -> bool:
        """Return whether there is an object or a folder of this key.

        Raises:
            StorageError: the store does not respond.
        """
        return bool(self._info(key).type != pafs.FileType.NotFound)

    def list(self, prefix: str = "") -> Names:
        """Return the keys of all objects below a folder, sorted; none if there is no such folder.

        Raises:
            StorageError: the store does not respond.
        """
        return [key for key, kind in self._below(prefix, recursive=True) if kind == pafs.FileType.File]

    def folders(self, prefix: str = "") -> Names:
        """Return the names of the direct subfolders of a folder, sorted.

        Raises:
            StorageError: the store does not respond.
        """
        below = self._below(prefix, recursive=False)
        return [key.rpartition("/")[2] for key, kind in below if kind == pafs.FileType.Directory]

    def is_link(self, key: str) -> bool:
        """Return whether a key of a folder store is a symbolic link; object stores have none.

        Raises:
            StorageError: the key points outside the store.
        """
        return self.is_folder and Path(self.path(key)).is_symlink()

    def delete_prefix(self, prefix: str) -> None:
        """Delete an object, or a folder with its content; a missing one is no error.

        Raises:
            StorageError: the prefix is empty, which would delete the complete store, or deleting fails.
        """
        path = self.path(prefix)
        if path == self.root:
            raise StorageError(f"refused to delete the complete store {self.uri()}; name a folder in it")
        kind = self._info(prefix).type
        with self._trying("delete", prefix):
            if kind == pafs.FileType.Directory:
                self.filesystem.delete_dir(path)
            elif kind == pafs.FileType.File:
                self.filesystem.delete_file(path)

    def check_writable(self) -> None:
        """Write, read back and delete a small object, so that a run fails at its start instead of its end.

        Raises:
            StorageError: the message names the store, the failure and a remedy.
        """
        if self.endpoint:
            _connect(self.endpoint)
        self._check_bucket()
        key, data = f"rec_ray-check-{uuid.uuid4().hex}", b"rec_ray"
        self.write_bytes(key, data)
        try:
            if self.read_bytes(key) != data:
                raise StorageError(f"{self!r} returns other bytes than were written; is a cache in between?")
        finally:
            self.delete_prefix(key)

    def _check_bucket(self) -> None:
        if self.is_folder:
            return
        bucket = self.root.partition("/")[0]
        try:
            info = self.filesystem.get_file_info(bucket)
        except OSError:
            return  # Not every access key may query the bucket; the error of the write is clear enough then.
        if info.type == pafs.FileType.NotFound:
            raise StorageError(
                f"there is no bucket {bucket!r} for {self!r}; create it first, rec_ray creates no bucket"
            )

    def _info(self, key: str) -> pafs.FileInfo:
        path = self.path(key)
        with self._trying("look up", key):
            return self.filesystem.get_file_info(path)

    def _below(self, prefix: str, *, recursive: bool) -> Sequence[tuple[str, pafs.FileType]]:
        selector = pafs.FileSelector(self.path(prefix), recursive=recursive, allow_not_found=True)
        with self._trying("list", prefix):
            infos = self.filesystem.get_file_info(selector)
        start = len(self.root.rstrip("/")) + 1
        return sorted((info.path[start:], info.type) for info in infos if not is_partial(info.base_name))

    @contextlib.contextmanager
    def _trying(self, verb: str, key: str) -> Iterator[None]:
        """Translate errors of pyarrow and the operating system into a StorageError without secrets."""
        try:
            yield
        except (OSError, ValueError) as error:
            text = str(error)
            for secret in self._secrets:
                text = text.replace(secret, "***")
            if isinstance(error, FileNotFoundError) and verb == "read":
                text = "there is no such object"
            remedy = next((remedy for sign, remedy in _REMEDIES if sign.lower() in text.lower()), "")
            where = f"{self.uri(key)}{f' at {self.endpoint}' if self.endpoint else ''}"
            # From None: the traceback of the original would print its text unredacted.
            raise StorageError(f"cannot {verb} {where}: {text}{f'; {remedy}' if remedy else ''}") from None


def open_storage(
    url: str,
    *,
    endpoint: str | None = None,
    region: str = "us-east-1",
    ca_bundle: str | None = None,
    access_key: str | None = None,
    secret_key: str | None = None,
) -> Storage:
    """Build the storage of an address, without a connection yet (see `Storage.check_writable`).

    Args:
        url: a folder, `file:///folder` or `s3://bucket/prefix`.
        endpoint: S3 server such as `https://minio:9000`; TLS is used unless it begins with http://. Without it: AWS.
        region: region of the bucket.
        ca_bundle: PEM file with the certificates to trust.
        access_key: S3 access key; without keys the AWS ones of the environment are used.
        secret_key: S3 secret key.

    Raises:
        ConfigError: the combination of address, endpoint and keys is invalid.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme == "file":
        folder = rest if separator else url
        if not folder:
            raise ConfigError("storage.url is empty; set it to a folder or to s3://bucket/prefix")
        return Storage(pafs.LocalFileSystem(), os.path.abspath(folder))  # noqa: PTH100  also removes `..`
    if scheme != "s3":
        raise ConfigError(f"storage.url begins with {scheme}://; known are a folder, file:// and s3://bucket/prefix")
    root = rest.strip("/")
    bucket = root.partition("/")[0]
    if "@" in bucket or ":" in bucket:
        raise ConfigError("storage.url holds keys; set REC_RAY__STORAGE__ACCESS_KEY and ..._SECRET_KEY instead")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", bucket):
        raise ConfigError(f"storage.url {url!r} names no bucket; it looks like s3://bucket/prefix")
    try:
        _checked(root)
    except StorageError as error:
        raise ConfigError(f"storage.url {url!r}: {error}") from None
    if (access_key is None) != (secret_key is None):
        raise ConfigError("S3 needs both REC_RAY__STORAGE__ACCESS_KEY and REC_RAY__STORAGE__SECRET_KEY, or neither")
    if ca_bundle is not None and not Path(ca_bundle).is_file():
        raise ConfigError(f"storage.ca_bundle names {ca_bundle}, which is no file")
    filesystem, address = s3_filesystem(endpoint, region, ca_bundle, access_key, secret_key)
    return Storage(filesystem, root, address, tuple(secret for secret in (access_key, secret_key) if secret))


def s3_filesystem(
    endpoint: str | None,
    region: str | None = None,
    ca_bundle: str | None = None,
    access_key: str | None = None,
    secret_key: str | None = None,
) -> tuple[pafs.S3FileSystem, str | None]:
    """Return a file system of an S3 server and the address of the server; arguments as in `open_storage`.

    All S3 file systems are built here, also those of Feast's files: requests are retried, and TLS is used unless the
    endpoint begins with http.

    Raises:
        ConfigError: the endpoint is no server address.
    """
    tls, host = _endpoint(endpoint)
    filesystem = pafs.S3FileSystem(
        access_key=access_key,
        secret_key=secret_key,
        region=region,
        scheme="https" if tls else "http",
        endpoint_override=host,
        tls_ca_file_path=ca_bundle,
        allow_bucket_creation=False,
        allow_bucket_deletion=False,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=RETRY_ATTEMPTS),
    )
    return filesystem, f"{'https' if tls else 'http'}://{host}" if host else None


def _endpoint(endpoint: str | None) -> tuple[bool, str | None]:
    """Return whether to use TLS, and the `host:port` of the endpoint."""
    if endpoint is None:
        return True, None
    parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
    if "@" in parts.netloc:
        raise ConfigError("storage.endpoint holds a user or password; set the keys in the environment instead")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ConfigError(f"storage.endpoint {endpoint!r} is no server address; it looks like https://minio:9000")
    return parts.scheme == "https", parts.netloc


def _connect(endpoint: str) -> None:
    """Raise within seconds, not after all retries, if no server listens."""
    parts = urlsplit(endpoint)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=PROBE_SECONDS).close()
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise StorageError(
            f"nothing answers at storage.endpoint {endpoint}: {reason}; is the address right and the server running?"
        ) from None


def _checked(part: str) -> str:
    """Return a valid part of a key without its final `/`, or raise."""
    inner = part.removesuffix("/")
    if inner and any(name in ("", ".", "..") or not name.isprintable() or "\\" in name for name in inner.split("/")):
        raise StorageError(f"refused the key {part!r}: keys are relative, without '..', empty or unprintable parts")
    if part and not inner:
        raise StorageError(f"refused the key {part!r}: keys are relative to the store")
    return inner
