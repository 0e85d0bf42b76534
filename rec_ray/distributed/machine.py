"""Machine of a local Ray: its memory limit, processes that the kernel killed, and folders for Ray's sockets.

Input: paths of the kernel's files, and numbers. Output: bytes, folders and sentences for messages.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

PROCESS_BYTES = 700_000_000
"""Memory of a process that has imported Ray, Feast and torch."""
RAY_BYTES = 400_000_000
"""Memory of Ray's own processes on a machine, and of the objects of a small run."""
CGROUPS, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
LONGEST_SOCKET = 107
"""Maximum length in bytes of the path of a Unix socket on Linux."""
SOCKET_OF_RAY = "ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.00"
"""Longest path of a socket that Ray creates below its folder for temporary files."""
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def needed_memory(cpus: int) -> int:
    """Return the minimum memory of a run in bytes: a worker per CPU, the driver, training, and Ray itself."""
    return (cpus + 2) * PROCESS_BYTES + RAY_BYTES


def memory_limit(root: Path = CGROUPS, own: Path = OWN_CGROUP) -> tuple[int, str]:
    """Return the memory limit of processes here in bytes, and the source of the limit."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found = [_number(folder / name) for folder in _folders(root, own) for name in ("memory.max", _LIMIT_V1)]
    bounds = [bound for bound in found if bound is not None and bound < physical]
    return (min(bounds), "cgroup") if bounds else (physical, "machine")


def killed_processes(root: Path = CGROUPS, own: Path = OWN_CGROUP) -> int:
    """Return the number of processes of this cgroup that the kernel killed for memory; 0 if it does not count them."""
    for folder in _folders(root, own):
        for name in ("memory.events", "memory.oom_control"):
            for line in _lines(folder / name):
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def describe_memory(cpus: int) -> tuple[bool, str]:
    """Return whether the memory suffices for a local Ray with so many CPUs, and a phrase with need and limit."""
    need, (limit, where) = needed_memory(cpus), memory_limit()
    said = (
        f"a run with {cpus} CPUs needs about {need / 1e9:.1f} GB at least, the limit is {limit / 1e9:.1f} GB ({where})"
    )
    return limit >= need, said


def short_folder(folder: str, others: Sequence[str] = SHORT_FOLDERS) -> str | None:
    """Return the folder in which Ray can create its sockets: the given one, else the first suitable one of the others.

    folder: Ray's folder for temporary files. None: no folder is suitable.
    """
    return next((candidate for candidate in (folder, *others) if _holds_sockets(candidate)), None)


def home_holds(name: str) -> bool:
    """Return whether a folder of the home folder is writable. name: of the folder, which need not exist."""
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
    """Yield the folders of this process's cgroup and its parents, innermost first, for cgroup versions 1 and 2."""
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
