"""Memory limits and kills as the kernel writes them, and folders that are short enough for sockets."""

import os
from pathlib import Path

import pytest

from rec_ray.distributed.machine import (
    LONGEST_SOCKET,
    SOCKET_OF_RAY,
    describe_memory,
    home_holds,
    killed_processes,
    memory_limit,
    needed_memory,
    short_folder,
)

PHYSICAL = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def cgroup(folder: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Write /proc/self/cgroup and files below /sys/fs/cgroup."""
    root = folder / "cgroup"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    folder.mkdir(exist_ok=True)
    (folder / "own").write_text(own)
    return root, folder / "own"


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "2000000000\n"}, 2_000_000_000),
        ("0::/pods/one\n", {"pods/memory.max": "3000000\n", "pods/one/memory.max": "max\n"}, 3_000_000),
        ("0::/pods/one\n", {"pods/memory.max": "3000000\n", "pods/one/memory.max": "1000000\n"}, 1_000_000),
        ("5:cpu:/x\n4:memory:/x\n", {"memory/x/memory.limit_in_bytes": "4000000\n"}, 4_000_000),
        # A container sees its own limit at the top, under whatever path it has outside.
        ("4:memory:/outside\n", {"memory/memory.limit_in_bytes": "5000000\n"}, 5_000_000),
    ],
)
def test_the_lowest_limit_above_a_process_counts(own: str, files: dict[str, str], limit: int, tmp_path: Path) -> None:
    assert memory_limit(*cgroup(tmp_path, own, files)) == (limit, "cgroup")


@pytest.mark.parametrize("files", [{}, {"memory.max": "max\n"}, {"memory.max": "9223372036854771712\n"}])
def test_without_a_limit_the_memory_of_the_machine_counts(files: dict[str, str], tmp_path: Path) -> None:
    assert memory_limit(*cgroup(tmp_path, "0::/\n", files)) == (PHYSICAL, "machine")


def test_kills_of_both_versions_are_counted(tmp_path: Path) -> None:
    second = cgroup(tmp_path / "a", "0::/p\n", {"p/memory.events": "low 0\noom 4\noom_kill 3\n"})
    first = cgroup(tmp_path / "b", "4:memory:/p\n", {"memory/p/memory.oom_control": "under_oom 0\noom_kill 2\n"})
    none = cgroup(tmp_path / "c", "0::/\n", {})
    assert [killed_processes(*files) for files in (second, first, none)] == [3, 2, 0]


def test_one_cpu_fits_into_four_gigabytes_and_not_into_two() -> None:
    """Tried with a cgroup: 4 GB finished the demo, 2 GB had three workers killed."""
    assert 2e9 < needed_memory(1) < 4e9
    enough, said = describe_memory(10**6)
    assert not enough and "a run with 1000000 CPUs needs about" in said and "the limit is" in said


def test_a_folder_that_is_too_long_or_missing_gives_way_to_the_next_that_will_do(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 80)
    long.mkdir()
    short = "/tmp"
    assert len(f"{long}/{SOCKET_OF_RAY}") > LONGEST_SOCKET
    assert short_folder(short) == short
    assert short_folder(str(long), ["/missing", short]) == short
    assert short_folder("/missing", [short]) == short
    assert short_folder(str(long), [str(long / "more")]) is None


def test_a_home_that_is_missing_can_be_made_unless_it_lies_below_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for home, holds in ((tmp_path, True), (tmp_path / "new", True), (tmp_path / "file" / "home", False)):
        monkeypatch.setenv("HOME", str(home))
        assert home_holds(".ray") is holds
