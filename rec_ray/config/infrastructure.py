"""Settings of external systems: Feast, side tables, the object store, the database of versions, Ray.

Input: plain values. Output: frozen sections. An address must not contain a secret; this module opens nothing.
"""

from __future__ import annotations

import re

from pydantic import Field, SecretStr, field_validator

from rec_ray.config.section import ENV_PREFIX, Positive, Section

SQLITE_ADDRESS = re.compile(r"^sqlite(\+\w+)?:(///?)?")
_PASSWORD_IN_URL = re.compile(r"://[^@]*:[^@]*@|[?&]\w*(password|passwd|pwd)=", re.IGNORECASE)


class FeastSettings(Section):
    """Location of the feature repository, and its names of views, services and keys."""

    repo: str = Field("feature_repo", description="Folder with feature_store.yaml, or that file by another name.")
    user_views: list[str] = Field(
        default_factory=list,
        description="Views with user features, or view:field for a single field; empty: those of user_service.",
    )
    item_views: list[str] = Field(
        default_factory=list, description="Views with item features; empty: those of item_service."
    )
    events_view: str | None = Field(
        None, description="View whose rows are the events; null: the one of interaction_service that has both ids."
    )
    user_service: str = Field("user_service", description="Feature service with user features.")
    item_service: str = Field("item_service", description="Feature service with item features.")
    interaction_service: str = Field("interaction_service", description="Feature service with the events.")
    user_key: str = Field("user_id", description="Join key of the entity user.")
    item_key: str = Field("item_id", description="Join key of the entity item.")
    events_user_field: str | None = Field(
        None, description="Join key or field of the events with the id of the user; null: user_key."
    )
    events_item_field: str | None = Field(
        None, description="Join key or field of the events with the id of the item; null: item_key."
    )
    join_rows: Positive = Field(250_000, description="Rows of one point-in-time join; bounds the memory of a worker.")


class SideTableSettings(Section):
    """SQL tables of the shop whose rows supplement the data in Feast: sign-ups and live clicks."""

    url: str | None = Field(None, description="SQLAlchemy address, without a password; null: no side tables.")
    password: SecretStr | None = Field(None, description="From REC_RAY__SIDE_TABLES__PASSWORD or ..._FILE only.")
    users: str | None = Field("users", description="Table of users who signed up, or null.")
    user_columns: dict[str, str | None] = Field(
        default_factory=dict,
        description="Its columns by user_id, event_timestamp (signup_date) or user field; default: the field's name.",
    )
    interactions: str | None = Field("stream_interaction", description="Table of the clicks of today, or null.")
    interaction_columns: dict[str, str | None] = Field(
        default_factory=dict,
        description="Its columns by user_id, item_id, event_timestamp (timestamp), event_type, event_value.",
    )
    chunk_rows: Positive = Field(50_000, description="Rows in memory at a time.")

    @field_validator("url")
    @classmethod
    def _is_shown(cls, url: str | None) -> str | None:
        if url is not None and _PASSWORD_IN_URL.search(url):
            raise ValueError(
                f"contains a password; remove it and set {ENV_PREFIX}SIDE_TABLES__PASSWORD or ..._FILE instead"
            )
        return url


class StorageSettings(Section):
    """Object store of models and candidates."""

    url: str = Field("store", description="A folder, or s3://bucket/prefix.")
    endpoint: str | None = Field(None, description="Address of MinIO or another S3, such as https://minio:9000.")
    region: str = Field("us-east-1", description="Region of the bucket.")
    ca_bundle: str | None = Field(None, description="File with the certificates to trust, for https endpoints.")
    access_key: SecretStr | None = Field(None, description="From REC_RAY__STORAGE__ACCESS_KEY or ..._FILE only.")
    secret_key: SecretStr | None = Field(None, description="From REC_RAY__STORAGE__SECRET_KEY or ..._FILE only.")


class DatabaseSettings(Section):
    """Database of the versions."""

    url: str = Field("sqlite:///versions.db", description="SQLAlchemy address, without a password.")
    password: SecretStr | None = Field(None, description="From REC_RAY__DATABASE__PASSWORD or ..._FILE only.")
    schema_name: str | None = Field(
        None,
        pattern=r"^[a-z_][a-z0-9_]{0,62}$",
        description="PostgreSQL schema for all tables, one per project, so that projects can share a database; null: "
        "that of the user.",
    )

    @field_validator("url")
    @classmethod
    def _is_shown_and_outlives(cls, url: str) -> str:
        if SQLITE_ADDRESS.match(url):
            if ":memory:" in url or "mode=memory" in url or not SQLITE_ADDRESS.sub("", url).partition("?")[0]:
                raise ValueError(
                    "a database in memory is not supported, because other processes read the publishing lock and the "
                    "version row; use a file, such as sqlite:///versions.db"
                )
        elif _PASSWORD_IN_URL.search(url):
            raise ValueError(
                f"contains a password; remove it and set {ENV_PREFIX}DATABASE__PASSWORD or ..._FILE instead"
            )
        return url


class RaySettings(Section):
    """The cluster to run on."""

    address: str | None = Field(
        None,
        description="Cluster to join; null: RAY_ADDRESS of the environment unless it begins with http (the job server "
        "of entrypoint.sh); without either, a local Ray is started and stopped.",
    )
    num_cpus: Positive | None = Field(None, description="Logical CPUs of a local Ray; default: all cores.")
    object_store_memory: Positive | None = Field(None, description="Bytes of a local object store; default: Ray's.")
    threads: Positive | None = Field(None, description="Compute threads of a process; default: its reserved CPUs.")
