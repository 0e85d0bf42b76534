"""Atomic and durable writing of a local file: readers see the complete file or none, and it is flushed to the disk.

Large files bypass the page cache, because they are written once and need no copy in memory. On a virtual machine whose
host reclaims idle memory, page-cache pages are expensive.
"""

from __future__ import annotations

import errno
import mmap
import os
import uuid
from pathlib import Path

ALIGNMENT = 4096
"""Alignment of addresses, offsets and lengths in writes that bypass the page cache."""
FEWEST_BYTES = 2**20
"""Minimum size in bytes of a file that bypasses the page cache."""
BYTES_AT_ONCE = 2**20

_PARTIAL = ".partial"


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a file to a temporary name, flush it to the disk, then rename it atomically.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_PARTIAL}")
    content = memoryview(data).cast("B")
    try:
        written = _write_past_cache(partial, content) if len(content) >= FEWEST_BYTES else 0
        with partial.open("r+b" if written else "wb") as file:
            file.seek(written)
            file.write(content[written:])
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def is_partial(name: str) -> bool:
    """Return whether a file name, without its folder, is that of an unfinished write."""
    return name.startswith(".") and name.endswith(_PARTIAL)


def _write_past_cache(path: Path, content: memoryview) -> int:
    """Write the aligned beginning of the content and return its bytes; 0 if the file system refuses `O_DIRECT`."""
    direct = getattr(os, "O_DIRECT", 0)
    if not direct:
        return 0
    written = 0
    # A separate buffer, because its address must be a multiple of the alignment.
    aligned = memoryview(mmap.mmap(-1, BYTES_AT_ONCE))
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | direct, 0o666)
        try:
            while len(content) - written >= ALIGNMENT and written % ALIGNMENT == 0:
                size = min(BYTES_AT_ONCE, (len(content) - written) // ALIGNMENT * ALIGNMENT)
                aligned[:size] = content[written : written + size]
                written += os.write(file, aligned[:size])
        finally:
            os.close(file)
    except OSError as error:
        # The file system refuses or needs another alignment: the rest goes through the page cache.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    return written
