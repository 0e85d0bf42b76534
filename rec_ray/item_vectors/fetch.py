"""Files of images by path or address: of the machine, of an object store, of a web server.

Addresses come in and bytes go out, or why there are none; what takes too long or is too large is given up. It does not
look into the files, and knows neither items nor models.
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

AT_ONCE = 8
"""Files that one process fetches side by side."""
PIECE = 1 << 16


@dataclass(frozen=True)
class ImageFiles:
    """Where images are fetched from and how long that may take.

    repo: the folder that a relative path is relative to. storage: its server and keys read s3:// when it is a bucket;
    else the keys of the environment do. seconds: for one file of a web server. most_bytes: of one file.
    """

    storage: Storage
    repo: str
    seconds: float
    most_bytes: int

    def read(self, address: str) -> bytes:
        """Return the bytes of a file. address: a path, or one that begins with file://, s3://, http:// or https://.

        Raises:
            DataError: it is not there, cannot be read, or is too large.
        """
        scheme = address.partition("://")[0].lower() if "://" in address else "file"
        readers = {"file": self._of_machine, "s3": self._of_bucket, "http": self._of_web, "https": self._of_web}
        if scheme not in readers:
            raise DataError(f"begins with {scheme}://; known are paths, file://, s3://, http:// and https://")
        try:
            return readers[scheme](address)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise DataError(str(error).strip().partition("\n")[0] or type(error).__name__) from None

    def read_all(self, addresses: Sequence[str]) -> list[bytes | DataError]:
        """Return the bytes of each file, or why there are none, several at a time."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(self._read_or_say, addresses))

    def _read_or_say(self, address: str) -> bytes | DataError:
        try:
            return self.read(address)
        except DataError as error:
            return error

    def _of_machine(self, address: str) -> bytes:
        path = Path(self.repo) / (unquote(urlsplit(address).path) if "://" in address else address)
        # A device or a pipe would never end.
        if not path.is_file():
            raise DataError("there is no such file")
        self._require_small(path.stat().st_size)
        return path.read_bytes()

    def _of_bucket(self, address: str) -> bytes:
        filesystem: Any = s3_filesystem(None)[0] if self.storage.is_folder else self.storage.filesystem
        with filesystem.open_input_file(address.partition("://")[2]) as file:
            self._require_small(file.size())
            return bytes(file.read())

    def _of_web(self, address: str) -> bytes:
        ends = time.monotonic() + self.seconds
        request = urllib.request.Request(address, headers={"User-Agent": "rec_ray"})
        data = bytearray()
        with urllib.request.urlopen(request, timeout=self.seconds) as answer:
            while piece := answer.read1(PIECE):
                data += piece
                self._require_small(len(data))
                if time.monotonic() > ends:
                    raise TimeoutError(f"did not come within {self.seconds:g} s")
        return bytes(data)

    def _require_small(self, size: int) -> None:
        if size > self.most_bytes:
            raise DataError(f"has more than {self.most_bytes:,} bytes")


def shown(address: str) -> str:
    """Return an address for a log: without user, password and query, which may hold a key, and not too long."""
    if "://" not in address:
        return address[:200]
    scheme, _, rest = address.partition("://")
    host, slash, path = rest.partition("?")[0].partition("#")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"[:200]
