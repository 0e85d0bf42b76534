"""The variables of the replaced system: what they mean, what counts more, and that their secrets are not shown."""

import logging
import re
from pathlib import Path

import pytest

from rec_ray.config import Settings, find_secrets, redact_settings
from rec_ray.config.loading import load_settings
from rec_ray.errors import ConfigError
from rec_ray.logs import LOGGER

OLD = {
    "MINIO_HOST": "minio.shop.svc",
    "MINIO_PORT": "9001",
    "MINIO_ACCESS_KEY": "minio-user",
    "MINIO_SECRET_KEY": "minio-secret",
    "MINIO_SECURE": "True",
    "REGION": "eu-west-1",
    "DATABASE_URL": "postgresql://shop:p%40ss-word@pg.shop.svc:5433/shopdb?sslmode=require",
    "FEAST_PROJECT_NAME": "feast_edb_rec_sys",
    "FEAST_REGISTRY_URL": "feast-registry:443",
    "DATASET_URL": "https://example.com/data",
}


def load(folder: Path, text: str = "", **environ: str) -> Settings:
    (folder / "rec_ray.yaml").write_text(text)
    return load_settings(folder / "rec_ray.yaml", environ=environ)


def password(settings: Settings) -> str | None:
    secret = settings.database.password
    return secret.get_secret_value() if secret else None


def test_they_fill_what_the_file_leaves_open(tmp_path: Path) -> None:
    settings = load(tmp_path, **OLD)

    assert settings.storage.endpoint == "https://minio.shop.svc:9001"
    assert settings.storage.url == "s3://user-encoder/rec_ray"
    assert settings.storage.region == "eu-west-1"
    assert settings.database.url == "postgresql+psycopg://shop@pg.shop.svc:5433/shopdb?sslmode=require"
    assert settings.side_tables.url == settings.database.url
    assert sorted(find_secrets(settings)) == ["minio-secret", "minio-user", "p@ss-word", "p@ss-word"]


@pytest.mark.parametrize(
    ("variables", "url", "secret"),
    [
        ({"uri": "postgres://a:b@c/d"}, "postgresql+psycopg://a@c/d", "b"),
        ({"uri": "postgresql+asyncpg://a:b@c:1/d"}, "postgresql+psycopg://a@c:1/d", "b"),
        (
            {"DB_HOST": "pg", "DB_NAME": "shop", "DB_USER": "me", "DB_PASSWORD": "s3:c/ret"},
            "postgresql+psycopg://me@pg:5432/shop",
            "s3:c/ret",
        ),
        (
            {"DB_HOST": "pg", "DB_PORT": "6000", "DB_NAME": "shop", "DB_USER": "me"},
            "postgresql+psycopg://me@pg:6000/shop",
            None,
        ),
        ({"DATABASE_URL": "postgresql://a:b@c/d", "uri": "postgresql://x:y@z/w"}, "postgresql+psycopg://a@c/d", "b"),
        ({"DATABASE_URL": "postgresql://a@c/d", "DB_PASSWORD": "e"}, "postgresql+psycopg://a@c/d", "e"),
    ],
)
def test_each_way_to_name_the_database(variables: dict[str, str], url: str, secret: str | None, tmp_path: Path) -> None:
    settings = load(tmp_path, MINIO_HOST="minio", **variables)

    assert (settings.database.url, password(settings)) == (url, secret)


def test_negative_views_are_negative_unless_the_file_decides(tmp_path: Path) -> None:
    def negative(text: str, **environ: str) -> list[str]:
        return load(tmp_path, text, **environ).features.interaction.negative_types

    assert negative("", **OLD) == ["negative_view"]
    assert negative("features: {interaction: {weights: {purchase: 3}}}", **OLD) == ["negative_view"]
    assert negative("features: {interaction: {negative_types: [skip]}}", **OLD) == ["skip"]
    assert negative("features: {interaction: {negative_types: []}}", **OLD) == []
    assert negative("", DATABASE_URL="postgresql://a:b@c/d") == []


def test_the_backend_finds_what_its_pipeline_left_unless_the_file_decides(tmp_path: Path) -> None:
    publish = load(tmp_path, **OLD).publish
    assert publish.materialize == "auto" and publish.legacy_user_encoder

    publish = load(tmp_path, "publish: {materialize: [], legacy_user_encoder: false}", **OLD).publish
    assert publish.materialize == [] and not publish.legacy_user_encoder
    # Without its object store there is no bucket for the encoder.
    publish = load(tmp_path, "storage: {url: store}", **OLD).publish
    assert publish.materialize == "auto" and not publish.legacy_user_encoder
    publish = load(tmp_path).publish
    assert publish.materialize == [] and not publish.legacy_user_encoder


@pytest.mark.parametrize(
    ("variables", "endpoint"),
    [
        ({}, "http://minio:9000"),
        ({"MINIO_SECURE": "false", "MINIO_PORT": "80"}, "http://minio:80"),
        ({"MINIO_SECURE": "1"}, "https://minio:9000"),
        ({"MINIO_PORT": "tcp://10.0.0.1:9002"}, "http://minio:9002"),
        ({"MINIO_HOST": "https://minio:443/"}, "https://minio:443"),
    ],
)
def test_minio_has_defaults(variables: dict[str, str], endpoint: str, tmp_path: Path) -> None:
    assert load(tmp_path, **{"MINIO_HOST": "minio", **variables}).storage.endpoint == endpoint


def test_the_file_and_the_own_variables_count_more(tmp_path: Path) -> None:
    text = (
        "storage: {url: s3://mine/models, endpoint: http://other:9000}\ndatabase: {url: postgresql+psycopg://me@db/x}"
    )
    settings = load(tmp_path, text, **OLD, REC_RAY__STORAGE__REGION="here", REC_RAY__STORAGE__SECRET_KEY="own")

    assert (settings.storage.url, settings.storage.endpoint) == ("s3://mine/models", "http://other:9000")
    assert settings.database.url == "postgresql+psycopg://me@db/x"
    assert settings.storage.region == "here"
    assert "own" in find_secrets(settings) and "minio-user" in find_secrets(settings)
    assert "minio-secret" not in find_secrets(settings)


def test_a_project_of_this_machine_stays_on_it(tmp_path: Path) -> None:
    local = load(tmp_path, "storage: {url: store}\ndatabase: {url: sqlite:///versions.db}", **OLD)

    assert local.storage.endpoint is None and local.storage.url == str(tmp_path / "store")
    assert local.database.url.startswith("sqlite:///")
    assert find_secrets(local) == []


def test_names_that_others_use_too_count_only_beside_one_that_is_ours(tmp_path: Path) -> None:
    elsewhere = {name: OLD[name] for name in ("DATABASE_URL", "REGION", "DATASET_URL")}

    assert load(tmp_path, **elsewhere) == load(tmp_path)


def test_what_was_taken_is_said_without_a_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    LOGGER.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, LOGGER.name):
            settings = load(tmp_path, **OLD)
    finally:
        LOGGER.removeHandler(caplog.handler)

    assert "storage.endpoint" in caplog.text and "database.password" in caplog.text
    assert "DATASET_URL is ignored" in caplog.text
    for secret in ("minio-secret", "minio-user", "p@ss", "p%40ss"):
        assert secret not in caplog.text + str(redact_settings(settings)) + repr(settings)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"DATABASE_URL": "hunter2"}, "DATABASE_URL"),
        ({"uri": "//hunter2@"}, "uri"),
        ({"DB_HOST": "pg", "DB_PORT": "hunter2"}, "DB_PORT"),
        ({"MINIO_PORT": "hunter2"}, "MINIO_PORT"),
    ],
)
def test_a_wrong_one_is_named_and_not_shown(variables: dict[str, str], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        load(tmp_path, **{"MINIO_HOST": "minio", **variables})
    assert "hunter2" not in str(refused.value)


def test_the_page_on_upgrading_names_every_variable_and_its_settings_are_settings(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "upgrading.md").read_text()
    known = [*OLD, "uri", "DB_HOST", "DB_PORT", "DB_NAME", "DB_USER", "DB_PASSWORD"]
    first, *others = re.findall(r"```yaml\n(.*?)```", page, re.S)
    settings = load(tmp_path, first, **OLD)
    for example in others:
        load(tmp_path, example, **OLD)

    assert [name for name in known if f"`{name}`" not in page] == []
    assert settings.feast.repo == "/app/feature_repo"
    assert settings.storage.url in page
    assert set(settings.features.user) == {"preferences"}
    assert load(tmp_path, first).features.interaction.negative_types == ["negative_view"]
