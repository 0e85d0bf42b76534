"""The object store on a real folder, and what an S3 address turns into; a closed port is a server that is down."""

import dataclasses
import os
import pickle
import socket
import subprocess
import sys
import traceback
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from rec_ray.errors import ConfigError, StorageError
from rec_ray.storage.object_store import Storage, open_storage

SECRETS = {"access_key": "AKIAEXAMPLE", "secret_key": "wJalrXUtnFEMI"}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "store"))


def test_what_is_written_is_read(storage: Storage, tmp_path: Path) -> None:
    storage.check_writable()
    assert storage.list() == []
    storage.write_bytes("two-tower/1/weights", b"\x00\xff" * 10)
    storage.write_bytes("two-tower/1/ünï cödé", b"")
    storage.write_bytes("two-tower/2/weights", b"old")
    storage.write_bytes("two-tower/2/weights", b"new")
    assert storage.read_bytes("two-tower/1/weights") == b"\x00\xff" * 10
    assert storage.read_bytes("two-tower/2/weights") == b"new"
    assert (tmp_path / "store/two-tower/1/weights").read_bytes() == b"\x00\xff" * 10
    assert storage.list() == ["two-tower/1/weights", "two-tower/1/ünï cödé", "two-tower/2/weights"]
    assert storage.list("two-tower/2/") == ["two-tower/2/weights"]
    assert storage.list("nothing") == []
    assert storage.folders("two-tower") == ["1", "2"]
    assert [storage.size(f"two-tower/1/{name}") for name in ("weights", "ünï cödé", "nothing")] == [20, 0, None]
    assert storage.size("two-tower") is None, "a folder is no object"
    assert storage.exists("two-tower/1") and storage.exists("two-tower/1/weights") and not storage.exists("two")


def test_deleting_takes_one_folder_and_never_the_store(storage: Storage) -> None:
    for key in ("1/a", "1/b/c", "10/a"):
        storage.write_bytes(key, b"x")
    storage.delete_prefix("1")
    assert storage.list() == ["10/a"]
    storage.delete_prefix("1")
    storage.delete_prefix("10/a")
    assert storage.list() == []
    with pytest.raises(StorageError, match="refused to delete the complete store"):
        storage.delete_prefix("")


@pytest.mark.parametrize(
    "key", ["../x", "a/../../x", "a/..", "/etc/passwd", "/", "a//b", "./a", "a\\..\\b", "a\nb", "a\0"]
)
def test_a_key_that_leads_out_of_the_store_is_refused(storage: Storage, key: str) -> None:
    uses = (storage.path, storage.uri, storage.read_bytes, storage.list, storage.delete_prefix, storage.exists)
    for use in (*uses, lambda key: storage.write_bytes(key, b"x"), lambda key: storage.path("a", key)):
        with pytest.raises(StorageError, match="refused the key"):
            use(key)


def test_paths_and_addresses(tmp_path: Path) -> None:
    folder = open_storage(f"file://{tmp_path}/a/../store/")
    assert folder.path("x", "y/z") == folder.uri("x", "y", "z") == str(tmp_path / "store/x/y/z")
    bucket = open_storage("s3://shop/some/prefix/", endpoint="http://minio:9000", **SECRETS)
    assert bucket.path() == "shop/some/prefix"
    assert bucket.path("runs/1", "x") == "shop/some/prefix/runs/1/x"
    assert bucket.uri("x") == "s3://shop/some/prefix/x"
    assert open_storage("s3://shop", **SECRETS).path("x") == "shop/x"


def test_a_relative_folder_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = open_storage("store")
    monkeypatch.chdir("/")  # Ray workers run elsewhere.
    assert storage.path() == str(tmp_path / "store")


@pytest.mark.parametrize(
    ("endpoint", "shown"),
    [
        ("http://minio:9000", "http://minio:9000"),
        ("minio:9000", "https://minio:9000"),
        ("https://minio/", "https://minio"),
        (None, None),
    ],
)
def test_tls_is_used_unless_the_endpoint_says_http(endpoint: str | None, shown: str | None) -> None:
    storage = open_storage("s3://shop", endpoint=endpoint, **SECRETS)
    assert storage.endpoint == shown
    assert isinstance(storage.filesystem, pafs.S3FileSystem)


def test_a_storage_travels_to_another_process(storage: Storage) -> None:
    storage.write_bytes("a", b"x")
    program = "import pickle, sys; print(pickle.load(sys.stdin.buffer).read_bytes('a'))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps(storage),
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout == b"b'x'\n"
    bucket = open_storage("s3://shop/prefix", endpoint="https://minio:9000", **SECRETS)
    assert pickle.loads(pickle.dumps(bucket)) == bucket


def test_a_reader_never_sees_a_part_of_an_object(storage: Storage, tmp_path: Path) -> None:
    """Kill writers at different moments: what is there is whole, and what is left behind is hidden."""
    program = (
        "import sys\nfrom rec_ray.storage.object_store import open_storage\nstore = open_storage(sys.argv[1])\n"
        "for i in range(10**6):\n    store.write_bytes('big', bytes([i % 256]) * 3_000_000)\n"
        "    print(i, flush=True)\n"
    )
    root = Path(__file__).parents[2]
    for writes in (1, 2, 3):
        with subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "store")], stdout=subprocess.PIPE, cwd=root
        ) as writer:
            assert writer.stdout is not None
            for _ in range(writes):
                writer.stdout.readline()
                data = storage.read_bytes("big")
                assert len(data) == 3_000_000 and len(set(data)) == 1
            writer.kill()
        data = storage.read_bytes("big")
        assert len(data) == 3_000_000 and len(set(data)) == 1
        assert storage.list() == ["big"]


def test_a_failed_write_leaves_nothing_behind(storage: Storage, tmp_path: Path) -> None:
    storage.write_bytes("folder/a", b"x")
    with pytest.raises(StorageError, match="cannot write"):
        storage.write_bytes("folder", b"in the place of a folder")
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["folder"]
    with pytest.raises(StorageError, match="needs a name"):
        storage.write_bytes("", b"x")


def test_what_is_missing_is_named(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*store/two-tower/1: there is no such object"):
        storage.read_bytes("two-tower/1")


def test_a_folder_that_cannot_be_written_is_named_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"cannot write .*file/store.*a part of the path is a file") as raised:
        open_storage(str(tmp_path / "file/store")).check_writable()
    assert raised.value.exit_code == 3


def test_a_folder_without_rights_is_named_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # Root may write everywhere: be nobody for a moment.
    try:
        with pytest.raises(StorageError, match="the right to write"):
            open_storage(str(tmp_path / "locked/store")).check_writable()
    finally:
        os.seteuid(user)


def failing(storage: Storage, error: OSError) -> Storage:
    """A store whose file system raises an error at every read."""

    class Failing:
        def open_input_stream(self, path: str) -> None:
            raise error

    return dataclasses.replace(storage, filesystem=Failing())


def test_a_full_disk_is_named_with_a_remedy(storage: Storage) -> None:
    with pytest.raises(OSError, match="No space left") as full, Path("/dev/full").open("wb", buffering=0) as device:
        device.write(b"x")
    with pytest.raises(StorageError, match="the disk is full"):
        failing(storage, full.value).read_bytes("full")


def _closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_an_endpoint_that_does_not_answer_is_named_in_seconds_without_the_keys() -> None:
    endpoint = f"http://127.0.0.1:{_closed_port()}"
    storage = open_storage("s3://shop/prefix", endpoint=endpoint, **SECRETS)
    with pytest.raises(StorageError, match=f"nothing answers at storage.endpoint {endpoint}") as raised:
        storage.check_writable()
    shown = "".join(traceback.format_exception(raised.value)) + repr(storage) + str(storage) + storage.uri("x")
    assert not any(secret in shown for secret in SECRETS.values())


def test_keys_in_the_text_of_an_error_are_masked() -> None:
    storage = open_storage("s3://shop", endpoint="http://minio:9000", **SECRETS)
    error = OSError(f"ACCESS_DENIED for {SECRETS['access_key']} with {SECRETS['secret_key']}")
    with pytest.raises(StorageError) as raised:
        failing(storage, error).read_bytes("x")
    shown = "".join(traceback.format_exception(raised.value))
    assert "for *** with ***; check the access keys" in str(raised.value)
    assert not any(secret in shown.replace("SECRETS", "") for secret in SECRETS.values())


@pytest.mark.parametrize(
    ("url", "options", "said"),
    [
        ("", {}, "is empty"),
        ("gs://bucket", {}, "begins with gs://"),
        ("s3://", {}, "names no bucket"),
        ("s3://key:hunter2@bucket/prefix", {}, "holds keys"),
        ("s3://bucket/../other", {}, "refused the key"),
        ("s3://bucket", {"endpoint": "ftp://minio"}, "no server address"),
        ("s3://bucket", {"endpoint": "https://me:hunter2@minio"}, "holds a user or password"),
        ("s3://bucket", {"endpoint": "https://minio/path"}, "no server address"),
        ("s3://bucket", {"access_key": "hunter2"}, "needs both"),
        ("s3://bucket", {"ca_bundle": "no/such.pem"}, "no/such.pem, which is no file"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused(url: str, options: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        open_storage(url, **options)
    assert "hunter2" not in str(raised.value)
