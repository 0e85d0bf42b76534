"""Files come back byte for byte, past the page cache or through it, and nothing is left of one that failed."""

import errno
import os
from pathlib import Path

import pytest

from rec_ray.storage.atomic_write import ALIGNMENT, BYTES_AT_ONCE, FEWEST_BYTES, is_partial, write_atomically

SIZES = [0, 1, FEWEST_BYTES - 1, FEWEST_BYTES, FEWEST_BYTES + 1, BYTES_AT_ONCE + ALIGNMENT, 3 * BYTES_AT_ONCE + 4097]


@pytest.mark.parametrize("size", SIZES)
def test_a_file_comes_back(tmp_path: Path, size: int) -> None:
    path = tmp_path / "below" / "some.bin"
    data = os.urandom(size)
    # A view that begins anywhere, as buffers of Arrow do.
    write_atomically(path, memoryview(b"x" + data)[1:])
    assert path.read_bytes() == data
    write_atomically(path, data[::-1])
    assert path.read_bytes() == data[::-1]
    assert [file.name for file in path.parent.iterdir()] == ["some.bin"]
    plain = path.with_name("plain")
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("made", [False, True])
def test_a_file_system_that_does_not_open_files_past_the_cache_is_written_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: bool
) -> None:
    """Some leave an empty file behind when they refuse."""
    asked: list[str] = []

    def refuse(path: Path, flags: int, _mode: int) -> int:
        asked.append(path.name)
        assert flags & os.O_DIRECT
        if made:
            path.write_bytes(b"")
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "open", refuse)
    data = os.urandom(FEWEST_BYTES + 5)
    write_atomically(tmp_path / "some.bin", data)
    monkeypatch.undo()
    assert (tmp_path / "some.bin").read_bytes() == data
    assert len(asked) == 1


@pytest.mark.parametrize("accepted", [0, 1, 2])
def test_a_file_system_without_a_way_past_the_cache_is_written_through_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accepted: int
) -> None:
    calls: list[int] = []
    write = os.write

    def refuse(file: int, data: memoryview) -> int:
        calls.append(len(data))
        if len(calls) > accepted:
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(file, data)

    monkeypatch.setattr(os, "write", refuse)
    data = os.urandom(4 * BYTES_AT_ONCE + 5)
    write_atomically(tmp_path / "some.bin", data)
    assert (tmp_path / "some.bin").read_bytes() == data
    assert len(calls) == accepted + 1


def test_a_write_that_takes_less_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[: len(data) // 2]))
    data = os.urandom(2 * BYTES_AT_ONCE + 77)
    write_atomically(tmp_path / "some.bin", data)
    assert (tmp_path / "some.bin").read_bytes() == data


@pytest.mark.parametrize("size", [10, 2 * BYTES_AT_ONCE])
def test_nothing_is_left_of_a_file_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    (tmp_path / "some.bin").write_bytes(b"before")

    def full(_file: int, _data: object = None) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "some.bin", bytes(size))
    assert [file.name for file in tmp_path.iterdir()] == ["some.bin"]
    assert (tmp_path / "some.bin").read_bytes() == b"before"


def test_the_name_of_an_unfinished_file_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda _file: names.extend(path.name for path in tmp_path.iterdir()))
    write_atomically(tmp_path / "some.bin", b"1")
    assert [is_partial(name) for name in [*names, "some.bin", ".hidden"]] == [True, False, False]
