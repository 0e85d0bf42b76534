"""A file of a local folder that is there whole or not at all, and on the disk when its writing returns.

A path and bytes come in; nothing goes out. It uses no store, keys or formats.

Large files go past the page cache, straight to the disk: they are written once, and need no copy in memory. On a
virtual machine whose host takes back idle memory, pages of the page cache are expensive.
"""

from __future__ import annotations

import errno
import mmap
import os
import uuid
from pathlib import Path

ALIGNMENT = 4096
"""Addresses, offsets and lengths are multiples of it, past the page cache."""
FEWEST_BYTES = 2**20
"""Bytes from which on a file goes past the page cache."""
BYTES_AT_ONCE = 2**20

_PARTIAL = ".partial"


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a file beside its place, bring it to the disk, then move it there in one step.

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
    """Return whether a file of this name, without its folder, is one that was not finished."""
    return name.startswith(".") and name.endswith(_PARTIAL)


def _write_past_cache(path: Path, content: memoryview) -> int:
    """Make a file of the beginning of the content and return its bytes; 0, where the file system does not let."""
    direct = getattr(os, "O_DIRECT", 0)
    if not direct:
        return 0
    written = 0
    # Memory of its own, since it must begin at a multiple of the alignment.
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
        # No way past the page cache here, or another alignment: the rest goes through it.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    return written
