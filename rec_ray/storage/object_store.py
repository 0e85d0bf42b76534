"""The one place that builds the object store: a local folder, or S3 (MinIO and others) through pyarrow.

A store address and its access data come in; a `Storage` goes out, which every step and every Ray task uses to read and
write below one root: small objects by key here, large ones through `storage.filesystem` and `storage.path`. It does not
use their content, and no access key is ever part of its messages.
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
"""Tries of one S3 request; with pyarrow's exponential back-off and jitter that bridges half a minute."""

PROBE_SECONDS = 5.0
"""Seconds that `check_writable` waits for the endpoint to accept a connection."""

Names = list[str]
"""Keys or names of folders, sorted. Alias: the method `list` shadows the builtin in annotations."""

_REMEDIES = (
    ("certificate", "name the authority's certificate in storage.ca_bundle, or say http:// where there is no TLS"),
    ("NETWORK_CONNECTION", "is the endpoint right and the server running?"),
    ("NO_SUCH_BUCKET", "make the bucket first; it is never made by rec_ray"),
    ("bucket does not exist", "make the bucket first; it is never made by rec_ray"),
    ("INVALID_ACCESS_KEY_ID", "check REC_RAY__STORAGE__ACCESS_KEY"),
    ("SIGNATURE", "check REC_RAY__STORAGE__SECRET_KEY and storage.region"),
    ("ACCESS_DENIED", "check the access keys and what they are allowed to do with this bucket"),
    ("errno 13", "give this user the right to write there or set storage.url to another folder"),
    ("errno 17", "a part of the path is a file; set storage.url to a folder"),
    ("errno 20", "a part of the path is a file; set storage.url to a folder"),
    ("errno 28", "the disk is full; make room or run `rec-ray versions prune`"),
    ("errno 30", "the file system is read-only; set storage.url to another folder"),
)


@dataclass(frozen=True, repr=False)
class Storage:
    """A root in a file system; it travels into Ray tasks.

    Keys are addresses below the root with `/` between the parts, such as `two-tower/3/manifest.json`.

    filesystem: what pyarrow, Ray Data and Ray Train read and write with.
    root: the folder, or `bucket/prefix`, in the words of `filesystem`.
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
        """Return the address of a key for `filesystem`; without parts the root.

        Raises:
            StorageError: a part is absolute, empty or leads out of the root.
        """
        key = "/".join(_checked(part) for part in parts)
        return f"{self.root.rstrip('/')}/{key}" if key else self.root

    def uri(self, *parts: str) -> str:
        """Return the address of a key for people and records: `s3://bucket/prefix/key` or an absolute path.

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
        """Write an object; a reader sees the whole of it or what was there before.

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
            StorageError: it cannot be written, or not all of it arrived.
        """
        self.write_bytes(key, data)
        size = self.size(key)
        if size != len(data):
            raise StorageError(f"{self.uri(key)} has {size} bytes after writing {len(data):,}; run again")

    def size(self, key: str) -> int | None:
        """Return the bytes of an object, or None when there is no object of this key.

        Raises:
            StorageError: the store does not answer.
        """
        info = self._info(key)
        return int(info.size) if info.type == pafs.FileType.File else None

    def exists(self, key: str) -> bool:
        """Return whether there is an object or a folder of this key.

        Raises:
            StorageError: the store does not answer.
        """
        return bool(self._info(key).type != pafs.FileType.NotFound)

    def list(self, prefix: str = "") -> Names:
        """Return the keys of all objects below a folder, sorted; none when there is no such folder.

        Raises:
            StorageError: the store does not answer.
        """
        return [key for key, kind in self._below(prefix, recursive=True) if kind == pafs.FileType.File]

    def folders(self, prefix: str = "") -> Names:
        """Return the names of the folders that lie directly in a folder, sorted.

        Raises:
            StorageError: the store does not answer.
        """
        below = self._below(prefix, recursive=False)
        return [key.rpartition("/")[2] for key, kind in below if kind == pafs.FileType.Directory]

    def is_link(self, key: str) -> bool:
        """Return whether a key of a folder store is a symbolic link; object stores have none.

        Raises:
            StorageError: the key leads out of the store.
        """
        return self.is_folder and Path(self.path(key)).is_symlink()

    def delete_prefix(self, prefix: str) -> None:
        """Delete an object, or a folder with all below it; it is no error when there is none.

        Raises:
            StorageError: the prefix is empty, which would be the whole store, or deleting fails.
        """
        path = self.path(prefix)
        if path == self.root:
            raise StorageError(f"refused to delete the whole store {self.uri()}; name a folder in it")
        kind = self._info(prefix).type
        with self._trying("delete", prefix):
            if kind == pafs.FileType.Directory:
                self.filesystem.delete_dir(path)
            elif kind == pafs.FileType.File:
                self.filesystem.delete_file(path)

    def check_writable(self) -> None:
        """Write, read back and delete a small object, so that a run fails at its start and not at its end.

        Raises:
            StorageError: names the store, what failed and what to do.
        """
        if self.endpoint:
            _connect(self.endpoint)
        self._check_bucket()
        key, data = f"rec_ray-check-{uuid.uuid4().hex}", b"rec_ray"
        self.write_bytes(key, data)
        try:
            if self.read_bytes(key) != data:
                raise StorageError(f"{self!r} gives back other bytes than were written; is a cache in between?")
        finally:
            self.delete_prefix(key)

    def _check_bucket(self) -> None:
        if self.is_folder:
            return
        bucket = self.root.partition("/")[0]
        try:
            info = self.filesystem.get_file_info(bucket)
        except OSError:
            return  # Not every access key may look up the bucket; the error of the write is clear enough then.
        if info.type == pafs.FileType.NotFound:
            raise StorageError(f"there is no bucket {bucket!r} for {self!r}; make it first, rec_ray never makes one")

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
        """Turn what pyarrow and the operating system raise into a StorageError without secrets."""
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
    """Build the storage of an address; nothing is contacted yet (see `Storage.check_writable`).

    Args:
        url: a folder, `file:///folder` or `s3://bucket/prefix`.
        endpoint: S3 server such as `https://minio:9000`; TLS is used unless it says http. Without it: AWS.
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
    """Return a file system of an S3 server, and the address of the server; arguments as in `open_storage`.

    All file systems of S3 are built here, also for files that Feast names: requests are retried, TLS unless http is
    given.

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
    """Raise in seconds, not after all retries, when no server listens."""
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
    """Return a part of a key, or refuse it; one `/` at the end is cut."""
    inner = part.removesuffix("/")
    if inner and any(name in ("", ".", "..") or not name.isprintable() or "\\" in name for name in inner.split("/")):
        raise StorageError(f"refused the key {part!r}: keys are relative, without '..', empty or unprintable parts")
    if part and not inner:
        raise StorageError(f"refused the key {part!r}: keys are relative to the store")
    return inner
