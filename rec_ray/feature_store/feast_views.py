"""Feature views for the published results of a run, generated for an existing feature repository.

Input: an open store and the settings. Output: `rec_ray_views.py` with the repository's entities, push sources, views
and one feature service and, on request, the same objects in the registry. Existing objects are never changed.
"""

from __future__ import annotations

import contextlib
import io
import runpy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rec_ray.config import Settings
from rec_ray.errors import ConfigError, FeatureStoreError, list_names
from rec_ray.feature_store.api import Entity, FeatureService, FeatureStore, FeatureView, PushSource
from rec_ray.feature_store.registry import Registry, first_line, read_registry
from rec_ray.schema import EVENT_TIMESTAMP, TIMESTAMP

FILE_NAME = "rec_ray_views.py"
SERVICE = "recommendations"
TAG = "rec_ray"
SIMILAR_SOURCE = "item_items_push_source"
"""Name of the push source of similar items in repositories for which rec_ray generates views."""
SOURCES = {
    "postgres": ("feast.infra.offline_stores.contrib.postgres_offline_store.postgres_source", "PostgreSQLSource"),
    "snowflake.offline": ("feast", "SnowflakeSource"),
    "bigquery": ("feast", "BigQuerySource"),
    "redshift": ("feast", "RedshiftSource"),
    "spark": ("feast.infra.offline_stores.contrib.spark_offline_store.spark_source", "SparkSource"),
}
"""Offline stores that read tables -> module and name of their source class; all others get file sources."""
_NAMES = {"Entity", "FeatureService", "FeatureView", "Field", "PushSource", "ValueType"}
_ARROW = {"String": pa.string(), "Array(String)": pa.list_(pa.string()), "Array(Float32)": pa.list_(pa.float32())}

_HEADER = '''"""Views that rec_ray publishes recommendations to, written by `rec-ray feast-views`.

A run pushes to the online store; the {places} behind the push sources stay empty.
"""

from datetime import timedelta
{imports}
from feast import {feast_names}
{source_import}from feast.types import {types}

NEVER = timedelta(0)  # rows do not expire
{data}
{entities}
'''
_VIEW = """
{source} = PushSource(
    name="{source}",
    batch_source={source_class}(
        name="{tag}_{name}",
        {place},
        timestamp_field="event_timestamp",
    ),
)
{name} = FeatureView(
    name="{name}",
    description="{description}",
    entities=[{entity}],
    ttl=NEVER,
    schema=[
{fields}
    ],
    source={source},
    tags={{"{tag}": "published"}},
    owner="{tag}",
)
"""


@dataclass(frozen=True)
class PublishedViews:
    """Definitions that `rec-ray feast-views` adds. views: name -> fields. is_new: False if the registry has them."""

    file: Path
    text: str
    views: dict[str, list[str]]
    push_sources: list[str]
    is_new: bool


@dataclass(frozen=True)
class _View:
    name: str
    source: str
    side: str
    description: str
    fields: dict[str, str]


def plan_views(store: FeatureStore, settings: Settings) -> PublishedViews:
    """Return the views for a repository, as definitions in Python and as a summary.

    Raises:
        ConfigError: the repository has other views or push sources of these names.
        FeatureStoreError: the registry does not respond.
    """
    registry = read_registry(store)
    views = _wanted(settings)
    ours = {name for name, view in registry.views.items() if TAG in (view.tags or {})}
    _refuse_collisions(registry, views, ours)
    text = _render(store, registry, settings, views)
    return PublishedViews(
        Path(store.repo_path) / FILE_NAME,
        text,
        {view.name: list(view.fields) for view in views},
        [view.source for view in views],
        not {view.name for view in views} <= ours,
    )


def write_views(store: FeatureStore, settings: Settings, plan: PublishedViews) -> None:
    """Write the definitions and, if the offline store reads files, the empty files behind the push sources.

    Raises:
        ConfigError: the repository is not writable, or contains a file of that name that rec_ray did not write.
    """
    try:
        if plan.file.exists() and "written by `rec-ray feast-views`" not in plan.file.read_text(encoding="utf-8"):
            raise ConfigError(f"{plan.file} exists already, and rec_ray did not write it; move it away")
        plan.file.write_text(plan.text, encoding="utf-8")
        if not _tables(store):
            folder = plan.file.parent / "data" / TAG
            folder.mkdir(parents=True, exist_ok=True)
            for view in _wanted(settings):
                key = _key_type(store, read_registry(store), _key(settings, view.side))
                kinds = {_key(settings, view.side): pa.string() if key == "String" else pa.int64()}
                kinds |= {name: _ARROW[_plain(dtype)] for name, dtype in view.fields.items()}
                schema = pa.schema([*kinds.items(), (EVENT_TIMESTAMP, TIMESTAMP)])
                pq.write_table(schema.empty_table(), folder / f"{view.name}.parquet")
    except OSError as error:
        raise ConfigError(
            f"{plan.file} cannot be written: {error.strerror}; is the repository mounted read-only?"
        ) from error


def apply_views(store: FeatureStore, plan: PublishedViews) -> None:
    """Add the written definitions to the registry through Feast; existing entities stay unchanged.

    Raises:
        FeatureStoreError: Feast rejects them.
    """
    known = {entity.name for entity in store.list_entities()}
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            made: Any = runpy.run_path(str(plan.file)).values()
            kinds = (Entity, FeatureService, FeatureView, PushSource)
            objects = [thing for thing in made if isinstance(thing, kinds)]
            store.apply([thing for thing in objects if not (isinstance(thing, Entity) and thing.name in known)])
    except Exception as error:
        raise FeatureStoreError(f"Feast rejects the definitions in {plan.file}: {first_line(error)}") from error


def _wanted(settings: Settings) -> list[_View]:
    publish, metric = settings.publish, settings.model.similarity
    size = settings.model.embedding_size
    vector = f'Array(Float32), vector_index=True, vector_length={size}, vector_search_metric="{metric}"'
    version = {"model_version": "String"}
    lists = {"top_k_item_ids": "Array(String)", "top_k_scores": "Array(Float32)"}
    similar = {"similar_item_ids": "Array(String)", "similar_scores": "Array(Float32)"}
    vectors = {"embedding": vector}
    views = [
        _View(
            "item_embedding", publish.item_push_source, "item", "Vector of an item, to search by.", vectors | version
        ),
        _View(
            "user_embedding", publish.user_push_source, "user", "Vector of a user, to search with.", vectors | version
        ),
        _View(
            "user_items",
            publish.recommendation_push_source,
            "user",
            "Best items of a user, best first.",
            lists | version,
        ),
    ]
    if publish.similar_push_source is not None:
        views.append(
            _View("item_items", publish.similar_push_source, "item", "Items most like an item.", similar | version)
        )
    return views


def _refuse_collisions(registry: Registry, views: list[_View], ours: set[str]) -> None:
    there = {*registry.views, *registry.computed} - ours
    sources = {
        view.stream_source.name
        for name, view in registry.views.items()
        if name not in ours and getattr(view, "stream_source", None)
    }
    taken = [view.name for view in views if view.name in there] + [
        view.source for view in views if view.source in sources
    ]
    taken += [SERVICE] if SERVICE in registry.services and not ours else []
    if taken:
        raise ConfigError(
            f"project {registry.project!r} already has {list_names(taken)}, which rec_ray did not add: nothing was "
            "added. To publish to them, name their push sources in section `publish`; else rename them"
        )


def _render(store: FeatureStore, registry: Registry, settings: Settings, views: list[_View]) -> str:
    tables = _tables(store)
    entities = {side: _entity(store, registry, _key(settings, side), side) for side in ("user", "item")}
    key_types = {side: _key_type(store, registry, _key(settings, side)) for side in ("user", "item")}
    used = {"Array", "Float32", "String", *key_types.values()}
    module, source = tables or ("feast", "FileSource")
    parts = [
        _HEADER.format(
            places="tables" if tables else "files",
            imports="" if tables else "from pathlib import Path\n",
            feast_names=", ".join(sorted(_NAMES | ({source} if module == "feast" else set()))),
            source_import="" if module == "feast" else f"from {module} import {source}\n",
            types=", ".join(sorted(used)),
            data="" if tables else 'DATA = Path(__file__).resolve().parent / "data" / "rec_ray"\n',
            entities="\n".join(entities.values()),
        )
    ]
    for view in views:
        key = _key(settings, view.side)
        place = f'table="{TAG}_{view.name}"' if tables else f'path=str(DATA / "{view.name}.parquet")'
        fields = {key: key_types[view.side], **view.fields}
        parts.append(
            _VIEW.format(
                source=view.source,
                name=view.name,
                description=view.description,
                entity=view.side,
                tag=TAG,
                source_class=source,
                place=place,
                fields="\n".join(f'        Field(name="{name}", dtype={dtype}),' for name, dtype in fields.items()),
            )
        )
    parts.append(f'\n{SERVICE} = FeatureService(name="{SERVICE}", features=[user_items], owner="{TAG}")\n')
    return "".join(parts)


def _key(settings: Settings, side: str) -> str:
    key: str = getattr(settings.feast, f"{side}_key")
    return key


def _entity(store: FeatureStore, registry: Registry, key: str, side: str) -> str:
    """Return the definition of an entity from the registry, or of a new one."""
    known = next((entity for entity in store.list_entities() if entity.join_key == key), None)
    kind = {"String": "STRING", "Int64": "INT64", "Int32": "INT32"}[_key_type(store, registry, key)]
    if known is None:
        return f'{side} = Entity(name="{side}", join_keys=["{key}"], value_type=ValueType.{kind})'
    more = f", description={known.description!r}" if known.description else ""
    more += f", tags={dict(known.tags)!r}" if known.tags else ""
    more += f", owner={known.owner!r}" if known.owner else ""
    name = known.value_type.name
    return f'{side} = Entity(name="{known.name}", join_keys=["{key}"], value_type=ValueType.{name}{more})'


def _key_type(store: FeatureStore, registry: Registry, key: str) -> str:
    """Return the Feast type of a join key, as declared by the views or by its entity."""
    kinds = [str(each.dtype) for view in registry.views.values() for each in view.entity_columns if each.name == key]
    kinds += [entity.value_type.name.title() for entity in store.list_entities() if entity.join_key == key]
    return next((kind for kind in kinds if kind in ("String", "Int64", "Int32")), "String")


def _plain(dtype: str) -> str:
    return dtype.partition("), ")[0] + ")" if "), " in dtype else dtype


def _tables(store: FeatureStore) -> tuple[str, str] | None:
    return SOURCES.get(str(store.config.offline_store.type))
