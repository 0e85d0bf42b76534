"""The machine under a local Ray: its memory limit, processes that the kernel killed, and room for Ray's sockets.

Paths of the kernel's files and numbers come in; bytes, folders and sentences go out. It starts nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

PROCESS_BYTES = 700_000_000
"""A process that has imported Ray, Feast and torch."""
RAY_BYTES = 400_000_000
"""Ray's own processes on a machine, and the objects of a small run."""
CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
LONGEST_SOCKET = 107
"""Bytes of the path of a Unix socket on Linux."""
SOCKET_OF_RAY = "ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.00"
"""The longest path of a socket that Ray makes below its folder for temporary files."""
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def needed_memory(cpus: int) -> int:
    """Return the bytes that a run needs at least: a worker for each CPU, the driver, training, and Ray itself."""
    return (cpus + 2) * PROCESS_BYTES + RAY_BYTES


def memory_limit(root: Path = CGROUPS, own: Path = OWN_CGROUP) -> tuple[int, str]:
    """Return the bytes of memory that processes here can have, and where the bound comes from."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = [_number(folder / name) for folder in _folders(root, own) for name in ("memory.max", _LIMIT_V1)]
    bounds = [bound for bound in found if bound is not None and bound < physical]
    return (min(bounds), "cgroup") if bounds else (physical, "machine")


def killed_processes(root: Path = CGROUPS, own: Path = OWN_CGROUP) -> int:
    """Return how many processes of this cgroup the kernel has killed for memory; 0 where it does not count them."""
    for folder in _folders(root, own):
        for name in ("memory.events", "memory.oom_control"):
            for line in _lines(folder / name):
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def describe_memory(cpus: int) -> tuple[bool, str]:
    """Return whether the memory is enough for a local Ray of so many CPUs, and need and limit in words."""
    need, (limit, where) = needed_memory(cpus), memory_limit()
    said = (
        f"a run with {cpus} CPUs needs about {need / 1e9:.1f} GB at least, the limit is {limit / 1e9:.1f} GB ({where})"
    )
    return limit >= need, said


def short_folder(folder: str, others: Sequence[str] = SHORT_FOLDERS) -> str | None:
    """Return the folder in which Ray can make its sockets: the given one, else the first of the others that will do.

    folder: of temporary files, as Ray finds it. None: no folder will do.
    """
    return next((candidate for candidate in (folder, *others) if _holds_sockets(candidate)), None)


def home_holds(name: str) -> bool:
    """Return whether a file below a folder of the home folder can be written. name: of the folder, there or not."""
    try:
        home = Path.home()
        there = next(folder for folder in (home / name, home, *home.parents) if folder.exists())
        return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    except (OSError, RuntimeError):
        return False


def _holds_sockets(folder: str) -> bool:
    path = Path(folder)
    short = len(os.fsencode(path / SOCKET_OF_RAY)) <= LONGEST_SOCKET
    return short and path.is_dir() and os.access(path, os.W_OK | os.X_OK)


_LIMIT_V1 = "memory.limit_in_bytes"


def _folders(root: Path, own: Path) -> Iterator[Path]:
    """Yield the folders of this process's cgroup and of all above it, innermost first, of both versions."""
    for line in _lines(own):
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        inner = base / path.strip("/")
        yield from (folder for folder in (inner, *inner.parents) if folder.is_relative_to(base))


def _number(file: Path) -> int | None:
    text = "".join(_lines(file)).strip()
    return int(text) if text.isdecimal() else None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
