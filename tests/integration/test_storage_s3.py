"""The object store on a real S3 server: what a folder does it does too, and what only S3 has: keys, TLS, outages."""

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import make_bundle
from servers import SeaweedFS

from rec_ray.config.loading import load_settings
from rec_ray.errors import BundleError, DataError, StorageError
from rec_ray.runs.stores import open_object_store
from rec_ray.storage.model_store import find_model, load_model, save_model
from rec_ray.storage.object_store import Storage, open_storage

pytestmark = pytest.mark.usefixtures("processes")


@pytest.fixture
def storage(seaweedfs: SeaweedFS, request: pytest.FixtureRequest) -> Storage:
    return open_bucket(seaweedfs, request.node.name.replace("[", "-").replace("]", ""))


def open_bucket(server: SeaweedFS, prefix: str, **given: str) -> Storage:
    keys = {"access_key": server.access_key, "secret_key": server.secret_key}
    return open_storage(f"s3://{server.bucket}/{prefix}", endpoint=server.endpoint, **(keys | given))


def test_objects_behave_as_in_a_folder(storage: Storage) -> None:
    storage.check_writable()
    assert storage.list() == []
    storage.write_bytes("two-tower/1/weights", b"\x00\xff" * 10)
    storage.write_bytes("two-tower/1/ünï cödé", b"")
    storage.write_bytes("two-tower/2/weights", b"old")
    storage.write_bytes("two-tower/2/weights", b"new")
    assert storage.read_bytes("two-tower/1/weights") == b"\x00\xff" * 10
    assert storage.read_bytes("two-tower/2/weights") == b"new"
    assert storage.list() == ["two-tower/1/weights", "two-tower/1/ünï cödé", "two-tower/2/weights"]
    assert storage.list("two-tower/2/") == ["two-tower/2/weights"]
    assert storage.list("nothing") == []
    assert storage.folders("two-tower") == ["1", "2"]
    assert [storage.size(f"two-tower/1/{name}") for name in ("weights", "ünï cödé", "nothing")] == [20, 0, None]
    assert storage.exists("two-tower/1") and storage.exists("two-tower/1/weights") and not storage.exists("two")
    storage.delete_prefix("two-tower/1")
    storage.delete_prefix("two-tower/1")
    assert storage.list() == ["two-tower/2/weights"]
    with pytest.raises(StorageError, match=r"cannot read s3://rec-ray/.*nothing at http://.*no such object"):
        storage.read_bytes("nothing")


def test_the_settings_open_the_bucket(seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    file = tmp_path / "rec_ray.yaml"
    file.write_text("{}")
    settings = load_settings(file, [], environ=seaweedfs.settings())
    open_object_store(settings).write_bytes("from-settings", b"x")
    assert open_bucket(seaweedfs, "").read_bytes("from-settings") == b"x"


def test_images_are_read_with_the_keys_of_the_store(seaweedfs: SeaweedFS, tmp_path: Path) -> None:
    from rec_ray.item_vectors.fetch import ImageFiles

    storage = open_bucket(seaweedfs, "shop")
    storage.write_bytes("a b.png", b"x" * 100)
    files = ImageFiles(storage, str(tmp_path), 5, 99)
    assert ImageFiles(storage, str(tmp_path), 5, 100).read(storage.uri("a b.png")) == b"x" * 100
    with pytest.raises(DataError, match="more than 99 bytes"):
        files.read(storage.uri("a b.png"))
    with pytest.raises(DataError):
        files.read(storage.uri("none.png"))


def test_wrong_keys_and_a_missing_bucket_are_named(seaweedfs: SeaweedFS) -> None:
    with pytest.raises(StorageError, match="check REC_RAY__STORAGE__SECRET_KEY") as raised:
        open_bucket(seaweedfs, "x", secret_key="wrong-secret-key").check_writable()
    assert "wrong-secret-key" not in str(raised.value)
    with pytest.raises(StorageError, match=r"INVALID_ACCESS_KEY_ID.*check REC_RAY__STORAGE__ACCESS_KEY"):
        open_bucket(seaweedfs, "x", access_key="nobody").write_bytes("a", b"x")
    keys = {"access_key": seaweedfs.access_key, "secret_key": seaweedfs.secret_key}
    with pytest.raises(StorageError, match="there is no bucket 'no-such-bucket'"):
        open_storage("s3://no-such-bucket/x", endpoint=seaweedfs.endpoint, **keys).check_writable()


def test_an_outage_of_seconds_is_bridged(seaweedfs: SeaweedFS, storage: Storage) -> None:
    """The server goes away in the middle of an upload and comes back: the library tries again by itself."""
    size, written, failed = 6_000_000, [], []
    going = threading.Event()

    def upload() -> None:
        try:
            for number in range(10):
                storage.write_checked(f"part-{number}", bytes([number]) * size)
                written.append(number)
                going.set()
        except StorageError as error:
            failed.append(error)
            going.set()

    uploading = threading.Thread(target=upload)
    uploading.start()
    try:
        assert going.wait(120)
        seaweedfs.kill()
        time.sleep(2)
    finally:
        seaweedfs.start()
    uploading.join(timeout=300)
    assert not failed and written == list(range(10))
    for number in range(10):
        assert storage.read_bytes(f"part-{number}") == bytes([number]) * size


def test_a_model_is_whole_or_refused(storage: Storage) -> None:
    bundle = make_bundle()
    stored = save_model(bundle, "1", storage)
    assert find_model("1", storage) == stored
    assert load_model("1", storage).arguments == bundle.arguments
    assert storage.list("two-tower/1")[-1].endswith("weights.safetensors")
    data = storage.read_bytes("two-tower/1/weights.safetensors")
    storage.write_bytes("two-tower/1/weights.safetensors", data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"weights.safetensors in s3://.* does not have the SHA-256 sum"):
        load_model("1", storage)
    storage.delete_prefix("two-tower/1/preprocessor.json")
    with pytest.raises(BundleError, match=r"preprocessor\.json in s3://.* is missing"):
        find_model("1", storage)
    storage.delete_prefix("two-tower/1/manifest.json")
    with pytest.raises(BundleError, match=r"has no manifest.json: its upload was interrupted"):
        find_model("1", storage)


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    """An S3 server with a certificate that only its own authority vouches for."""
    folder = tmp_path_factory.mktemp("tls")
    command = [
        *["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"],
        *["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "certificate.pem"],
    ]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    with SeaweedFS(certificate=folder / "certificate.pem", key=folder / "key.pem") as server:
        yield server


def test_tls_with_a_ca_bundle(tls_server: SeaweedFS) -> None:
    assert tls_server.endpoint.startswith("https://127.0.0.1:")
    assert tls_server.certificate is not None
    trusted = open_bucket(tls_server, "tls", ca_bundle=str(tls_server.certificate))
    trusted.check_writable()
    trusted.write_bytes("a", b"secret")
    assert trusted.read_bytes("a") == b"secret"
    # Without a scheme TLS is used, too.
    bare = tls_server.endpoint.removeprefix("https://")
    keys = {"access_key": tls_server.access_key, "secret_key": tls_server.secret_key}
    bucket = f"s3://{tls_server.bucket}/tls"
    assert (
        open_storage(bucket, endpoint=bare, ca_bundle=str(tls_server.certificate), **keys).read_bytes("a") == b"secret"
    )


def test_a_certificate_that_nobody_vouches_for_is_refused(
    tls_server: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rec_ray.storage.object_store.RETRY_ATTEMPTS", 1)
    with pytest.raises(StorageError, match=r"certificate.*storage\.ca_bundle"):
        open_bucket(tls_server, "tls").read_bytes("a")


def test_files_that_feast_names_are_read_from_the_server(
    seaweedfs: SeaweedFS, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from feast import FileSource

    from rec_ray.feature_store.source_files import find_files

    filesystem = seaweedfs.filesystem()
    for number in range(2):
        path = f"{seaweedfs.bucket}/events/{number}.parquet"
        pq.write_table(pa.table({"user_id": ["a"]}), path, filesystem=filesystem)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", seaweedfs.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", seaweedfs.secret_key)
    named = FileSource(
        name="events",
        path=f"s3://{seaweedfs.bucket}/events",
        s3_endpoint_override=seaweedfs.endpoint,
        timestamp_field="event_timestamp",
    )
    found, paths = find_files(named, tmp_path, "events")
    assert paths == [f"{seaweedfs.bucket}/events/{number}.parquet" for number in range(2)]
    assert pq.read_table(paths[0], filesystem=found).num_rows == 1
