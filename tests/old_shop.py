"""The replaced system as it is deployed, for tests: its feature repository, its registry server, its backend's queries.

Names, keys, types and layout are those of the deployed system; the code is our own. The repository names no offline
store (Feast takes Dask), its registry is a server with TLS in front of a SQL registry, its online store PostgreSQL with
pgvector. Its tables are drawn here, with the columns of the deployed ones: times without a zone, the time of an item
and of a user in a column of another name, more than half of the events negative.
"""

from __future__ import annotations

import contextlib
import io
import socket
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from servers import HOST, PostgreSQL, SeaweedFS, Server

PROJECT = "feast_rec_sys"
BUCKET = "user-encoder"
YEARS = timedelta(days=365)
KINDS = ["negative_view", "positive_view", "cart", "purchase", "rate"]
TOPICS = ["Kitchen", "Phones", "Cables", "Lamps", "Watches"]
PUSHED = {
    # view -> (its push source, entity, field, whether that is a vector)
    "item_embedding": ("item_embed_push_source", "item", "embedding", True),
    "user_embedding": ("user_embed_push_source", "user", "embedding", True),
    "user_items": ("user_items_push_source", "user", "top_k_item_ids", False),
    "item_textual_features_embed": ("item_textual_features_embed", "item", "about_product_embedding", True),
    "item_clip_features_embed": ("item_clip_features_embed", "item", "clip_latent_space_embedding", True),
}


def draw_tables(users: int = 120, items: int = 40, events: int = 3000, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Draw tables with the columns of the deployed ones; a user likes the items of the one topic that they prefer."""
    rng = np.random.default_rng(seed)
    liked, topic = rng.integers(len(TOPICS), size=users), rng.integers(len(TOPICS), size=items)
    user = np.array([f"U{number:025d}" for number in range(users)])
    item = np.array([f"B{number:09d}" for number in range(items)])
    who, what = rng.integers(users, size=events), rng.integers(items, size=events)
    likes = liked[who] == topic[what]
    kind = np.where(likes, rng.choice(KINDS[1:], size=events), KINDS[0])
    year = 365 * 24 * 60
    return {
        "recommendation_users": pd.DataFrame(
            {
                "user_id": user,
                "user_name": "Customer",
                "signup_date": _minutes("2023-01-01", rng.integers(year, size=users)),
                "preferences": [f"{TOPICS[number]}|Gifts" for number in liked],
            }
        ),
        "recommendation_items": pd.DataFrame(
            {
                "item_id": item,
                "product_name": [f"{TOPICS[number]} no. {place}" for place, number in enumerate(topic)],
                "category": [f"Shop|{TOPICS[number]}" for number in topic],
                "discounted_price": np.round(rng.lognormal(4, 1, items), 2),
                "actual_price": np.round(rng.lognormal(5, 1, items), 2),
                "discount_percentage": np.round(rng.random(items), 2),
                "rating": np.round(rng.uniform(3, 5, items), 1),
                "rating_count": rng.integers(1, 9000, items),
                "about_product": [
                    f"A thing for people who like {TOPICS[number]}, made of part {place}."
                    for place, number in enumerate(topic)
                ],
                "arrival_date": _minutes("2023-01-01", rng.integers(year, size=items)),
                "img_link": [f"/images/{place}.png" for place in range(items)],
                "product_link": [f"https://shop.example/{place}" for place in range(items)],
            }
        ),
        "recommendation_interactions": pd.DataFrame(
            {
                "interaction_id": [f"E{number:025d}" for number in range(events)],
                "user_id": user[who],
                "item_id": item[what],
                "timestamp": _minutes("2024-01-01", rng.integers(year, size=events)),
                "interaction_type": kind,
                "review_title": "No review",
                "review_content": "no content",
                "rating": np.where(kind == "rate", rng.integers(3, 6, size=events), np.nan),
                "quantity": np.where(kind == "purchase", rng.integers(1, 4, size=events), np.nan),
            }
        ),
    }


def _minutes(start: str, minutes: Any) -> Any:
    return pd.Timestamp(start) + pd.to_timedelta(minutes, unit="min")


def define_repository() -> list[Any]:
    """Return the entities, views and services of the deployed repository; paths are relative to it."""
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
    from feast.data_format import ParquetFormat
    from feast.types import Array, Float32, Float64, Int64, String

    entities = {
        name: Entity(name=name, join_keys=[f"{name}_id"], value_type=ValueType.STRING) for name in ("user", "item")
    }

    def source(name: str, time: str = "event_timestamp") -> Any:
        return FileSource(file_format=ParquetFormat(), path=f"data/{name}.parquet", timestamp_field=time)

    def view(name: str, keys: str, years: int, fields: Mapping[str, Any], batch: Any, online: bool) -> Any:
        keyed = [entities[key] for key in keys.split()]
        schema = [Field(name=f"{key}_id", dtype=String) for key in keys.split()]
        schema += [Field(name=field, dtype=kind) for field, kind in fields.items()]
        return FeatureView(name=name, entities=keyed, ttl=years * YEARS, schema=schema, source=batch, online=online)

    users = view(
        "user_features",
        "user",
        6,
        {"user_name": String, "preferences": String},
        source("recommendation_users", "signup_date"),
        False,
    )
    products = dict.fromkeys(("product_name", "category", "about_product", "img_link", "product_link"), String)
    products |= dict.fromkeys(("discounted_price", "actual_price", "discount_percentage", "rating"), Float64)
    items = view(
        "item_features",
        "item",
        5,
        {**products, "rating_count": Int64},
        source("recommendation_items", "arrival_date"),
        True,
    )
    happened = dict.fromkeys(("interaction_id", "review_title", "review_content", "interaction_type"), String)
    interactions = view(
        "interactions_features",
        "user item",
        5,
        {**happened, "rating": Float64, "quantity": Float64},
        source("recommendation_interactions", "timestamp"),
        False,
    )
    pushed = []
    for name, (push_source, entity, field, is_vector) in PUSHED.items():
        kind = Array(Float32) if is_vector else Array(String)
        more = {"vector_index": True, "vector_search_metric": "cosine"} if is_vector else {}
        schema = [Field(name=f"{entity}_id", dtype=String), Field(name=field, dtype=kind, **more)]
        fed = PushSource(name=push_source, batch_source=source(f"empty_{name}"))
        pushed.append(
            FeatureView(name=name, entities=[entities[entity]], ttl=5 * YEARS, schema=schema, source=fed, online=True)
        )
    services = {"item_service": items, "user_service": users, "interaction_service": interactions}
    services |= {view.name: view for view in pushed if view.name not in ("user_items", "user_embedding")}
    services["user_top_k_items"] = next(view for view in pushed if view.name == "user_items")
    return [
        *entities.values(),
        users,
        items,
        interactions,
        *pushed,
        *(FeatureService(name=name, features=[view]) for name, view in services.items()),
    ]


class RegistryServer(Server):
    """Feast's registry server with TLS, before the SQL registry in a PostgreSQL database."""

    name = "registry"

    def __init__(self, server: PostgreSQL, database: str) -> None:
        super().__init__()
        self.server, self.database = server, database
        self.certificate = self.folder / "tls.crt"

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{HOST}:{self.port}"

    def prepare(self) -> None:
        """Write a certificate and a repository that has the SQL registry."""
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={HOST}"]
        command += ["-addext", f"subjectAltName=IP:{HOST}", "-keyout", "tls.key", "-out", "tls.crt"]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True)
        settings = {
            "project": PROJECT,
            "provider": "local",
            "registry": self.server.registry(self.database),
            "online_store": self.server.online_store(self.database),
            "entity_key_serialization_version": 3,
        }
        (self.folder / "feature_store.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")

    def command(self) -> list[str]:
        """Return the command, with both files of the certificate."""
        program = Path(__file__).with_name("serve_registry.py")
        files = [str(self.certificate), str(self.folder / "tls.key")]
        return [sys.executable, str(program), str(self.folder), str(self.port), *files]

    def ask(self) -> None:
        """Connect to the port."""
        socket.create_connection((HOST, self.port), 5).close()


@dataclass(frozen=True)
class OldShop:
    """A deployed shop. environment: the variables of its training container, which Feast reads too."""

    repo: Path
    environment: dict[str, str]
    tables: Mapping[str, pd.DataFrame]

    def apply(self) -> None:
        """Apply the definitions through the registry server; the variables must be set."""
        from feast import FeatureStore

        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.chdir(self.repo):
            warnings.simplefilter("ignore")
            FeatureStore(repo_path=".").apply(define_repository())

    @property
    def items(self) -> list[str]:
        """Ids of all products."""
        return list(self.tables["recommendation_items"]["item_id"])

    @property
    def users(self) -> list[str]:
        """Ids of all users."""
        return list(self.tables["recommendation_users"]["user_id"])


def deploy(
    folder: Path,
    tables: Mapping[str, pd.DataFrame],
    registry: RegistryServer,
    objects: SeaweedFS,
) -> OldShop:
    """Write the repository and make the bucket; `OldShop.apply` registers the definitions."""
    data = folder / "data"
    data.mkdir(parents=True)
    for name, table in tables.items():
        table.to_parquet(data / f"{name}.parquet", index=False)
    for name, (_, entity, field, _) in PUSHED.items():
        row = {f"{entity}_id": ["NOBODY"], field: [["x", "y"] if field == "top_k_item_ids" else [1.0, 2.0]]}
        late = {"event_timestamp": [pd.Timestamp("2032-08-23 12:16:54")]}
        pd.DataFrame({**row, **late}).to_parquet(data / f"empty_{name}.parquet", index=False)
    settings = {
        "project": "${FEAST_PROJECT_NAME}",
        "provider": "local",
        "registry": {"registry_type": "remote", "path": "${FEAST_REGISTRY_URL}", "cert": str(registry.certificate)},
        "entity_key_serialization_version": 3,
        "online_store": {
            "type": "postgres",
            **{key: f"${{DB_{name}}}" for key, name in (("host", "HOST"), ("port", "PORT"), ("database", "NAME"))},
            **{key: f"${{DB_{key.upper()}}}" for key in ("user", "password")},
            "vector_enabled": True,
            # The only line that the deployed one lacks: its server has a certificate.
            "sslmode": "disable",
        },
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    server, database = registry.server, registry.database
    address = f"{server.role}:{server.password}@{HOST}:{server.port}/{database}"
    environment = {
        "FEAST_PROJECT_NAME": PROJECT,
        "FEAST_REGISTRY_URL": registry.address,
        "DB_HOST": HOST,
        "DB_PORT": str(server.port),
        "DB_NAME": database,
        "DB_USER": server.role,
        "DB_PASSWORD": server.password,
        "uri": f"postgresql://{address}",
        "DATABASE_URL": f"postgresql://{address}",
        "MINIO_HOST": HOST,
        "MINIO_PORT": str(objects.port),
        "MINIO_ACCESS_KEY": objects.access_key,
        "MINIO_SECRET_KEY": objects.secret_key,
        "MINIO_SECURE": "false",
        "DATASET_URL": "",
    }
    objects.filesystem().create_dir(BUCKET)
    return OldShop(folder, environment, tables)
