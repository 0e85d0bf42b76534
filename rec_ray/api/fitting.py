"""Training on tables in memory, without Feast and Ray: `fit` returns a model that recommends and can be saved.

Input: interactions, and optionally users and items, as frames. Output: a `FittedModel`. Declarations, split, training
and refit are those of the pipeline, with the same defaults.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from pydantic import ValidationError

from rec_ray.api.fitted_model import FittedModel
from rec_ray.api.frames import Frame
from rec_ray.api.training_tables import Columns, EncodedTables, declare_tables, encode_frames, read_tables
from rec_ray.config import Settings, redact_settings
from rec_ray.contracts import TrainedModel
from rec_ray.errors import ConfigError, DataError, list_names
from rec_ray.logs import LOGGER
from rec_ray.schema import EVENT_TIMESTAMP, ITEM_ID, USER_ID
from rec_ray.storage.object_store import Storage, open_storage
from rec_ray.training.checkpoint import Progress
from rec_ray.training.trained_model import build_trained_model, tower_arguments
from rec_ray.training.worker import TrainingPlan, train_stages

SECTIONS = ("features", "model", "train", "evaluation", "candidates")


def fit(
    interactions: Frame,
    users: Frame | None = None,
    items: Frame | None = None,
    *,
    user_column: str = USER_ID,
    item_column: str = ITEM_ID,
    time_column: str = EVENT_TIMESTAMP,
    type_column: str | None = None,
    value_column: str | None = None,
    timezone: str | None = None,
    now: datetime | None = None,
    **settings: Mapping[str, Any],
) -> FittedModel:
    """Train a model on tables of pandas, Polars or Arrow; a table is also a list of rows or a mapping of columns.

    Args:
        interactions: one row per event, with ids as strings or whole numbers and times with a zone.
        users: one row per user, with the id and features; None: no features.
        items: one row per item, likewise. Items of the events without a row have no features.
        user_column, item_column: names of the ids, in all tables.
        time_column: name of the time of an event.
        type_column: name of the type of an event, such as view or purchase; default: `interaction_type` or
            `event_type`, if there is such a column.
        value_column: name of a rating; default: `rating`, if its values look like ratings.
        timezone: zone of times without one, such as UTC; None refuses such times.
        now: time of the data; later events are left out. Default: the current time.
        settings: the sections `features`, `model`, `train`, `evaluation` and `candidates` of `rec_ray.yaml`, such as
            `train={"epochs": 3}`. Features that are not declared are declared by the rules of `rec-ray init`.

    User and item features are today's values for all events, so a feature that events change makes metrics too good.

    Raises:
        ConfigError: a setting is unknown or wrong.
        SchemaError: a table lacks a column, or has it with another type.
        DataError: an id or a time is null, an id is repeated, or too few events remain.
    """
    columns = Columns(user_column, item_column, time_column, type_column, value_column, timezone)
    unknown = [name for name in settings if name not in SECTIONS]
    if unknown:
        raise ConfigError(f"fit takes no argument {list_names(unknown)}; sections are {list_names(SECTIONS)}")
    tables = read_tables(interactions, users, items, columns)
    as_of = now or datetime.now(UTC)
    if as_of.tzinfo is None:
        raise ConfigError("now has no time zone; use datetime.now(UTC) or the like")
    with tempfile.TemporaryDirectory(prefix="rec_ray_") as folder:
        checked = _settings(settings, declare_tables(tables, columns, Path(folder)))
        encoded = encode_frames(tables, checked, as_of)
        trained = _train(encoded, checked, open_storage(f"{folder}/store"))
    return FittedModel(trained, encoded, checked, tables.items)


def _settings(given: Mapping[str, Mapping[str, Any]], declared: dict[str, Any]) -> Settings:
    """Return the settings of a fit: those of the caller over the declared features and the defaults."""
    wrong = [name for name, section in given.items() if not isinstance(section, Mapping)]
    if wrong:
        raise ConfigError(f"{wrong[0]} takes a mapping of settings, such as train={{'epochs': 3}}")
    values: dict[str, Any] = {name: dict(section) for name, section in given.items()}
    features = values.setdefault("features", {})
    for side in ("user", "item"):
        features.setdefault(side, declared[side])
    features["interaction"] = {**declared["interaction"], **dict(features.get("interaction") or {})}
    # The tables have one row per user and item, whose values count for all events.
    features.setdefault("user_history", "as_of_now")
    features.setdefault("item_history", "as_of_now")
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "settings"
        raise ConfigError(f"{where}: {str(first['msg']).removeprefix('Value error, ')}") from None
    refused = {
        "features.text_encoder": settings.features.text_encoder != "hashing",
        "candidates.segment": settings.candidates.segment is not None,
        "train.warm_start": settings.train.warm_start != "off",
        "features.user_history": settings.features.user_history != "as_of_now",
        "features.item_history": settings.features.item_history != "as_of_now",
    }
    for name in (name for name, is_set in refused.items() if is_set):
        raise ConfigError(f"{name}: fit has no such choice; use a project and rec-ray train")
    return settings


def _train(encoded: EncodedTables, settings: Settings, storage: Storage) -> TrainedModel:
    """Run all stages of a training in this process."""
    folders = {}
    for name in ("timelines", "catalogue", "catalogue_now"):
        folder = Path(storage.path("data", name))
        folder.mkdir(parents=True)
        pq.write_table(getattr(encoded, name), folder / "part.parquet", row_group_size=32_768)
        folders[name] = str(folder)
    architecture = settings.model.model_dump()
    history = architecture.pop("history")
    preprocessor, train = encoded.preprocessor, settings.train
    plan = TrainingPlan(
        arguments=tower_arguments(preprocessor, architecture),
        history=history,
        user_shape=preprocessor.users.shape,
        item_shape=preprocessor.items.shape,
        **folders,
        items=encoded.catalogue.num_rows,
        storage=storage,
        train=train,
        history_length=settings.model.history_length,
        validation_users=settings.evaluation.validation_users,
        exclude_seen=settings.candidates.exclude_seen,
        threads=settings.ray.threads,
        started=time.time(),
    )
    threads = torch.get_num_threads()
    device = torch.device("cuda" if train.use_gpu else "cpu")
    try:
        with torch.random.fork_rng(devices=[]):
            progress = train_stages(plan, Progress(), rank=0, world=1, device=device, send=_log_epoch)
            return build_trained_model(progress, plan, preprocessor, _metadata(encoded, settings), warm_start="off")
    except FloatingPointError as error:
        raise DataError(str(error)) from None
    finally:
        torch.set_num_threads(threads)


def _log_epoch(metrics: dict[str, Any], folder: str | None) -> None:
    """Log an epoch; its checkpoint is not kept, because the process keeps the weights."""
    ndcg = metrics.get("validation_ndcg@10")
    said = "" if ndcg is None else f", validation NDCG@10 {ndcg:.4f}"
    LOGGER.info("%s: epoch %d, loss %.3f%s", metrics["stage"], metrics["epoch"], metrics["loss"], said)


def _metadata(encoded: EncodedTables, settings: Settings) -> dict[str, Any]:
    return {
        "run_id": "fit",
        "created_at": datetime.now(UTC).isoformat(),
        "data_to": encoded.times.as_of.isoformat(),
        "test_start": encoded.times.test_start.isoformat(),
        "text_encoder": settings.features.text_encoder,
        "settings": redact_settings(settings),
        "packages": {name: importlib.metadata.version(name) for name in ("rec_ray", "torch", "pyarrow", "numpy")},
        "rows": dict(encoded.rows),
    }
