"""Image files by path or address: of the machine, of an object store, of a web server.

Input: addresses. Output: the bytes of each file, or the error. Files that take too long or are too large are skipped
with an error.
"""

from __future__ import annotations

import http.client
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from rec_ray.errors import DataError
from rec_ray.storage.object_store import Storage, s3_filesystem

CONCURRENT_FILES = 8
"""Files that one process fetches at the same time."""
CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class ImageFiles:
    """Sources of image files, and limits on their time and size.

    repo: folder that relative paths start from. storage: if it is a bucket, its server and keys read s3:// addresses;
    otherwise the keys of the environment do. seconds: time limit for one file of a web server. most_bytes: size limit
    of one file.
    """

    storage: Storage
    repo: str
    seconds: float
    most_bytes: int

    def read(self, address: str) -> bytes:
        """Return the bytes of a file. address: a path, or an address that begins with file://, s3://, http:// or
        https://.

        Raises:
            DataError: the file does not exist, cannot be read, or is too large.
        """
        scheme = address.partition("://")[0].lower() if "://" in address else "file"
        readers = {"file": self._read_path, "s3": self._read_bucket, "http": self._read_web, "https": self._read_web}
        if scheme not in readers:
            raise DataError(f"unsupported address {scheme}://; use a path, file://, s3://, http:// or https://")
        try:
            return readers[scheme](address)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise DataError(str(error).strip().partition("\n")[0] or type(error).__name__) from None

    def read_all(self, addresses: Sequence[str]) -> list[bytes | DataError]:
        """Return the bytes of each file or its error, reading several at a time."""
        with ThreadPoolExecutor(CONCURRENT_FILES) as pool:
            return list(pool.map(self._read_or_error, addresses))

    def _read_or_error(self, address: str) -> bytes | DataError:
        try:
            return self.read(address)
        except DataError as error:
            return error

    def _read_path(self, address: str) -> bytes:
        path = Path(self.repo) / (unquote(urlsplit(address).path) if "://" in address else address)
        # Only regular files: reading a device or a pipe would never end.
        if not path.is_file():
            raise DataError("no such file")
        self._check_size(path.stat().st_size)
        return path.read_bytes()

    def _read_bucket(self, address: str) -> bytes:
        filesystem: Any = s3_filesystem(None)[0] if self.storage.is_folder else self.storage.filesystem
        with filesystem.open_input_file(address.partition("://")[2]) as file:
            self._check_size(file.size())
            return bytes(file.read())

    def _read_web(self, address: str) -> bytes:
        deadline = time.monotonic() + self.seconds
        request = urllib.request.Request(address, headers={"User-Agent": "rec_ray"})
        data = bytearray()
        with urllib.request.urlopen(request, timeout=self.seconds) as response:
            while chunk := response.read1(CHUNK_BYTES):
                data += chunk
                self._check_size(len(data))
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not received within {self.seconds:g} s")
        return bytes(data)

    def _check_size(self, size: int) -> None:
        if size > self.most_bytes:
            raise DataError(f"has more than {self.most_bytes:,} bytes")


def describe_address(address: str) -> str:
    """Return an address for a log: shortened, without user, password and query, which may hold a key."""
    if "://" not in address:
        return address[:200]
    scheme, _, rest = address.partition("://")
    host, slash, path = rest.partition("?")[0].partition("#")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"[:200]
