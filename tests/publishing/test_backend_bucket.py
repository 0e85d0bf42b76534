"""The two objects that the replaced system's backend loads: copied, missing, removed; those of others stay."""

import logging
from pathlib import Path

import pytest

from rec_ray.config import Settings
from rec_ray.errors import ConfigError
from rec_ray.logs import LOGGER
from rec_ray.publishing.backend_bucket import backend_bucket, legacy_names, publish_user_encoder, remove_user_encoder
from rec_ray.publishing.user_encoder import check_user_encoder
from rec_ray.storage.object_store import Storage, open_storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = open_storage(str(tmp_path))
    for version in ("3", "4"):
        for name in legacy_names(version):
            storage.write_bytes(f"two-tower/{version}/legacy/{name}", name.encode())
    backend_bucket(storage).write_bytes("user-encoder-1.0.7.pth", b"of the replaced system")
    return storage


def test_a_version_is_copied_and_pruned_by_its_own_names(storage: Storage) -> None:
    bucket = backend_bucket(storage)
    publish_user_encoder(storage, "3")
    publish_user_encoder(storage, "4")
    assert bucket.read_bytes("user-encoder-4.pth") == b"user-encoder-4.pth"
    assert bucket.read_bytes("user-encoder-config-4.json") == b"user-encoder-config-4.json"

    remove_user_encoder(storage, "3")
    remove_user_encoder(storage, "1.0.7")
    assert bucket.list() == ["user-encoder-1.0.7.pth", "user-encoder-4.pth", "user-encoder-config-4.json"]


def test_a_version_without_an_encoder_is_said(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    LOGGER.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.WARNING, LOGGER.name):
            publish_user_encoder(storage, "9")
    finally:
        LOGGER.removeHandler(caplog.handler)
    assert "version 9 has no user encoder" in caplog.text and "rec-ray candidates 9 --publish" in caplog.text
    assert backend_bucket(storage).list() == ["user-encoder-1.0.7.pth"]


def test_settings_that_the_backend_cannot_use_are_refused() -> None:
    def settings(size: int, on: bool) -> Settings:
        model = {"embedding_size": size, "history": "mean"}
        return Settings.model_validate({"model": model, "publish": {"legacy_user_encoder": on}})

    check_user_encoder(settings(64, True))
    check_user_encoder(settings(32, False))
    with pytest.raises(ConfigError, match=r"64 dimensions, model\.embedding_size is 32; set it to 64, or set publish"):
        check_user_encoder(settings(32, True))
