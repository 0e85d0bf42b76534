"""Bundles in a real folder: whole or refused, never overwritten, nothing unpickled."""

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch
from bundles import make_bundle

from rec_ray.errors import BundleError, StorageError
from rec_ray.retrieval.model.bundle import FILES
from rec_ray.storage.model_store import find_model, load_model, model_folder, save_model
from rec_ray.storage.object_store import Storage, open_storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


@pytest.fixture
def folder(storage: Storage, tmp_path: Path) -> Path:
    """The folder of version 3, stored."""
    save_model(make_bundle(), "3", storage)
    return tmp_path / "two-tower/3"


def rewrite(folder: Path, name: str, data: bytes) -> None:
    """Change a file and correct the manifest, as somebody with access to the store could."""
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_model_comes_back_as_it_was_stored(storage: Storage, tmp_path: Path) -> None:
    bundle = make_bundle()
    stored = save_model(bundle, "3", storage)
    folder = tmp_path / "two-tower/3"
    assert {path.name for path in folder.iterdir()} == {*FILES, "manifest.json"}
    assert (stored.version, stored.uri) == ("3", str(folder))
    assert stored.sha256 == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    for name, entry in json.loads((folder / "manifest.json").read_text())["files"].items():
        data = (folder / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    assert load_model("3", storage).to_files() == bundle.to_files()
    assert find_model("3", storage) == stored


def test_a_stored_version_is_never_overwritten(storage: Storage, folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert save_model(make_bundle(), "3", storage) == find_model("3", storage), "the same content is no harm"
    with pytest.raises(BundleError, match=r"version 3 is already stored .* with other content"):
        save_model(make_bundle(seed=1), "3", storage)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_interrupted_upload_is_no_model_and_can_be_repeated(storage: Storage, folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "weights.safetensors").write_bytes(b"half")
    for use in (load_model, find_model):
        with pytest.raises(BundleError, match=r"version 3 .* no manifest\.json: its upload was interrupted"):
            use("3", storage)
    save_model(make_bundle(seed=1), "3", storage)
    assert load_model("3", storage).metadata["seed"] == 1


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found(storage: Storage, folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"version 3 is damaged: {name} .* SHA-256"):
        load_model("3", storage)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_or_shortened_file_is_named(storage: Storage, folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1])
    for use in (load_model, find_model):
        with pytest.raises(BundleError, match=f"{name} .* bytes instead of {len(data):,}"):
            use("3", storage)
    (folder / name).unlink()
    for use in (load_model, find_model):
        with pytest.raises(BundleError, match=f"version 3 is damaged: {name} .* is missing"):
            use("3", storage)


def test_a_missing_version_names_those_there_are(storage: Storage, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "two-tower/4").mkdir()
    with pytest.raises(BundleError, match=r"no version '7' in .*; there are '3'\."):
        load_model("7", storage)


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (b"", "is no manifest"),
        (b"[]", "is no manifest"),
        (b"{}", "is no manifest"),
        (b'{"format_version": 1, "version": "3", "files": {"model.json": {}}}', "is no manifest"),
        (b'{"format_version": 2, "version": "3", "files": {}}', "format version 2, this program reads 1"),
        (b'{"format_version": 1, "version": "2", "files": {}}', "belongs to version '2'"),
        (b'{"format_version": 1, "version": "3", "files": {}}', "lacks the files"),
    ],
)
def test_a_manifest_that_is_none_is_refused(storage: Storage, folder: Path, manifest: bytes, said: str) -> None:
    (folder / "manifest.json").write_bytes(manifest)
    with pytest.raises(BundleError, match=said):
        load_model("3", storage)


def test_a_manifest_cannot_lead_out_of_the_store(storage: Storage, folder: Path) -> None:
    entry = {"sha256": "0" * 64, "bytes": 1}
    manifest = {"format_version": 1, "version": "3", "files": {"../../../etc/passwd": entry}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StorageError, match="refused the key"):
        load_model("3", storage)


def test_what_the_bundle_refuses_names_the_version(storage: Storage, folder: Path) -> None:
    rewrite(folder, "model.json", b"{}")
    with pytest.raises(BundleError, match=r"version 3 at .*two-tower/3: model\.json is of format version None"):
        load_model("3", storage)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return open, (str(self.file), "w")


def test_a_planted_pickle_is_never_loaded(storage: Storage, folder: Path, tmp_path: Path) -> None:
    exploded = tmp_path / "exploded"
    torch.save(Bomb(exploded), folder / "model.pth")
    load_model("3", storage)  # Beside the model, not in its manifest: never read.
    rewrite(folder, "weights.safetensors", (folder / "model.pth").read_bytes())
    with pytest.raises(BundleError, match=r"weights\.safetensors is not a safetensors file"):
        load_model("3", storage)
    save_model(make_bundle(), "4", storage)
    rewrite(tmp_path / "two-tower/4", "model.pkl", pickle.dumps(Bomb(exploded)))
    with pytest.raises(BundleError, match=r"unknown in format version 1: 'model\.pkl'"):
        load_model("4", storage)
    assert not exploded.exists()


@pytest.mark.parametrize("version", ["", "..", "../3", "1/candidates", "/3", "-1", "1" * 51, "3\n"])
def test_a_version_is_one_plain_name(storage: Storage, version: str) -> None:
    for use in (model_folder, lambda v: load_model(v, storage), lambda v: save_model(make_bundle(), v, storage)):
        with pytest.raises(BundleError, match="is no model version"):
            use(version)


def test_an_unwritable_store_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot"):
        save_model(make_bundle(), "1", open_storage(str(tmp_path / "file")))
