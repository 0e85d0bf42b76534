"""Writes a Feast repository around tables and registers it.

Input: a folder, a project name and the Arrow schemas of the tables in its `data` folder. Output: `feature_store.yaml`,
a readable `definitions.py` that the user may edit and apply again with `feast apply`, and a filled registry.
"""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from rec_ray.errors import FeatureStoreError, SchemaError
from rec_ray.schema import (
    EMBEDDING,
    EVENT_TIMESTAMP,
    ITEM_ID,
    MODEL_VERSION,
    SIMILAR_IDS,
    SIMILAR_SCORES,
    TIMESTAMP,
    USER_ID,
)

KEYS = {"users": ["user"], "items": ["item"], "interactions": ["user", "item"]}
SERVICES = {"users": "user_service", "items": "item_service", "interactions": "interaction_service"}
DESCRIPTIONS = {
    "users": "Features of a user, as of event_timestamp.",
    "items": "Features of an item, as of event_timestamp.",
    "interactions": "Events of users and items, one per row.",
}
VECTOR = pa.list_(pa.float32())
PUSHED = {
    "item_embedding": pa.schema(
        [(ITEM_ID, pa.string()), (EMBEDDING, VECTOR), (MODEL_VERSION, pa.string()), (EVENT_TIMESTAMP, TIMESTAMP)]
    ),
    "user_embedding": pa.schema(
        [(USER_ID, pa.string()), (EMBEDDING, VECTOR), (MODEL_VERSION, pa.string()), (EVENT_TIMESTAMP, TIMESTAMP)]
    ),
    "user_items": pa.schema(
        [
            (USER_ID, pa.string()),
            ("top_k_item_ids", pa.list_(pa.string())),
            ("top_k_scores", VECTOR),
            (MODEL_VERSION, pa.string()),
            (EVENT_TIMESTAMP, TIMESTAMP),
        ]
    ),
    "item_items": pa.schema(
        [
            (ITEM_ID, pa.string()),
            (SIMILAR_IDS, pa.list_(pa.string())),
            (SIMILAR_SCORES, VECTOR),
            (MODEL_VERSION, pa.string()),
            (EVENT_TIMESTAMP, TIMESTAMP),
        ]
    ),
}
"""View -> columns of the (empty) file behind it."""

_HEADER = '''"""Feature definitions of the project {project}, written by `rec-ray init`.

Edit them and run `feast apply` in this folder. Run it also after moving the folder, because the registry contains the
absolute paths of the files (Feast's DuckDB store resolves relative ones against the working directory of the process).
"""

from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
from feast.types import {types}

DATA = Path(__file__).resolve().parent / "data"
NEVER = timedelta(0)  # features do not expire

user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING, description="User of the shop.")
item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING, description="Item to recommend.")
'''

_VIEW = """
{name} = FeatureView(
    name="{name}",
    description="{description}",
    entities=[{entities}],
    ttl=NEVER,
    schema=[
{fields}
    ],
    source=FileSource(name="{name}_source", path=str(DATA / "{name}.parquet"), timestamp_field="event_timestamp"),
    online={online},
)
{service} = FeatureService(name="{service}", features=[{name}])
"""

_PUSHED = """
# Published results of a run. The files behind the push sources stay empty: the rows go to the online store.
item_embed_push_source = PushSource(
    name="item_embed_push_source",
    batch_source=FileSource(
        name="item_embedding_source", path=str(DATA / "item_embedding.parquet"), timestamp_field="event_timestamp"
    ),
)
user_embed_push_source = PushSource(
    name="user_embed_push_source",
    batch_source=FileSource(
        name="user_embedding_source", path=str(DATA / "user_embedding.parquet"), timestamp_field="event_timestamp"
    ),
)
user_items_push_source = PushSource(
    name="user_items_push_source",
    batch_source=FileSource(
        name="user_items_source", path=str(DATA / "user_items.parquet"), timestamp_field="event_timestamp"
    ),
)
item_items_push_source = PushSource(
    name="item_items_push_source",
    batch_source=FileSource(
        name="item_items_source", path=str(DATA / "item_items.parquet"), timestamp_field="event_timestamp"
    ),
)

# vector_length is not set, so that model.embedding_size alone decides.
item_embedding = FeatureView(
    name="item_embedding",
    description="Vector of an item in the space of the two towers.",
    entities=[item],
    ttl=NEVER,
    schema=[
        Field(name="item_id", dtype=String),
        Field(name="embedding", dtype=Array(Float32), vector_index=True, vector_search_metric="cosine"),
        Field(name="model_version", dtype=String),
    ],
    source=item_embed_push_source,
)
user_embedding = FeatureView(
    name="user_embedding",
    description="Vector of a user in the space of the two towers.",
    entities=[user],
    ttl=NEVER,
    schema=[
        Field(name="user_id", dtype=String),
        Field(name="embedding", dtype=Array(Float32), vector_index=True, vector_search_metric="cosine"),
        Field(name="model_version", dtype=String),
    ],
    source=user_embed_push_source,
)
user_items = FeatureView(
    name="user_items",
    description="The best items of a user, best first.",
    entities=[user],
    ttl=NEVER,
    schema=[
        Field(name="user_id", dtype=String),
        Field(name="top_k_item_ids", dtype=Array(String)),
        Field(name="top_k_scores", dtype=Array(Float32)),
        Field(name="model_version", dtype=String),
    ],
    source=user_items_push_source,
)
item_items = FeatureView(
    name="item_items",
    description="The items most like an item; filled when publish.similar_push_source names the push source.",
    entities=[item],
    ttl=NEVER,
    schema=[
        Field(name="item_id", dtype=String),
        Field(name="similar_item_ids", dtype=Array(String)),
        Field(name="similar_scores", dtype=Array(Float32)),
        Field(name="model_version", dtype=String),
    ],
    source=item_items_push_source,
)
"""


def write_feature_repo(repo: Path, project: str, tables: Mapping[str, pa.Schema]) -> None:
    """Write `feature_store.yaml`, `definitions.py` and the empty files behind the push sources.

    Args:
        repo: folder; its `data` contains `users.parquet`, `items.parquet` and `interactions.parquet`.
        project: any text; `project_name` converts it to a valid name.
        tables: the schemas of those three files.

    Raises:
        SchemaError: Feast has no field type for a column.
    """
    project = project_name(project)
    settings = {
        "project": project,
        "provider": "local",
        "registry": "data/registry.db",
        "offline_store": {"type": "duckdb"},
        "online_store": {"type": "sqlite", "path": "data/online_store.db"},
        "entity_key_serialization_version": 3,
    }
    (repo / "data").mkdir(parents=True, exist_ok=True)
    (repo / "feature_store.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    (repo / "definitions.py").write_text(render_definitions(project, tables), encoding="utf-8")
    for name, schema in PUSHED.items():
        pq.write_table(schema.empty_table(), repo / "data" / f"{name}.parquet")


def project_name(text: str) -> str:
    """Return a name that is valid in Feast and in SQL table names: letters, digits and underscores."""
    name = re.sub(r"[^a-z0-9_]+", "_", text.lower()).strip("_")
    return name if name and not name[0].isdigit() else f"shop_{name}".rstrip("_")


def render_definitions(project: str, tables: Mapping[str, pa.Schema]) -> str:
    """Return the text of `definitions.py`."""
    used = {"Array", "Float32", "String"}
    parts = []
    for name, entities in KEYS.items():
        fields = []
        for column in tables[name]:
            if column.name == EVENT_TIMESTAMP:
                continue
            dtype = feast_type(column, name)
            used |= set(re.findall(r"\w+", dtype))
            fields.append(f"        Field(name={_literal(column.name)}, dtype={dtype}),")
        parts.append(
            _VIEW.format(
                name=name,
                description=DESCRIPTIONS[name],
                entities=", ".join(entities),
                fields="\n".join(fields),
                online=name != "interactions",
                service=SERVICES[name],
            )
        )
    return _HEADER.format(project=project, types=", ".join(sorted(used))) + "".join(parts) + _PUSHED


def feast_type(column: pa.Field, table: str) -> str:
    """Return the Feast type of a column as Python source.

    Raises:
        SchemaError: Feast has no such type.
    """
    kind = column.type
    if pa.types.is_list(kind):
        return f"Array({feast_type(pa.field(column.name, kind.value_type), table)})"
    names = {
        pa.string(): "String",
        pa.int64(): "Int64",
        pa.float32(): "Float32",
        pa.float64(): "Float64",
        pa.bool_(): "Bool",
        TIMESTAMP: "UnixTimestamp",
    }
    if kind not in names:
        raise SchemaError(f"column {column.name!r} of {table} is {kind}, a type that Feast lacks; leave it out")
    return names[kind]


def apply_feature_repo(repo: Path) -> None:
    """Register the definitions, as `feast apply` does, without its output.

    Raises:
        FeatureStoreError: the definitions are wrong or Feast rejects them; the cause is attached.
    """
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            from rec_ray.feature_store.api import Entity, FeatureService, FeatureStore, FeatureView, PushSource

            made: Any = runpy.run_path(str(repo / "definitions.py")).values()
            kinds = (Entity, FeatureService, FeatureView, PushSource)
            FeatureStore(repo_path=str(repo)).apply([thing for thing in made if isinstance(thing, kinds)])
    except Exception as error:
        raise FeatureStoreError(
            f"the feature repository {repo} could not be applied: {type(error).__name__}: {error}"
        ) from error


def _literal(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
