"""Own files in the forms that people have, joined as a run joins them: each value against one row at a time."""

import math
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec_ray.config.loading import load_settings
from rec_ray.sample.project import init_project
from rec_ray.sample.roles import ColumnNames

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.usefixtures("local_ray")]

START = pd.Timestamp("2024-01-01", tz="UTC")
USERS, ITEMS, EVENTS = 14, 9, 160


def make_frames(seed: int = 3) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Users and items with several versions, some with nulls and some of one time; a user and an item without a row."""
    rng = np.random.default_rng(seed)

    def versions(ids: list[str], count: int) -> pd.DataFrame:
        days = rng.integers(-10, 60, count) + rng.integers(0, 2, count) / 2
        return pd.DataFrame(
            {"id": rng.choice(ids, count), "timestamp": [START + pd.Timedelta(days=float(day)) for day in days]}
        ).drop_duplicates()

    users = versions([f"{number:03d}" for number in range(USERS - 1)], 40)
    items = versions([f"i{number}" for number in range(ITEMS - 1)], 25)
    n, m = len(users), len(items)
    users["age"] = pd.array(np.where(rng.random(n) < 0.3, None, rng.integers(18, 80, n)), "Int64")
    users["score"] = np.where(rng.random(n) < 0.3, np.nan, rng.normal(size=n).round(3))
    users["member"] = pd.array(np.where(rng.random(n) < 0.2, None, rng.random(n) < 0.5), "boolean")
    users["city"] = np.where(rng.random(n) < 0.2, None, rng.choice(["Rome", "Oslo", "Bern"], n))
    users["since"] = [START - pd.Timedelta(days=int(day)) for day in rng.integers(1, 900, n)]
    items["price"] = rng.uniform(1, 9, m).round(2)
    items["brand"] = np.where(rng.random(m) < 0.2, None, rng.choice(["a", "b"], m))
    hours = np.sort(rng.integers(0, 50 * 24, EVENTS))
    events = pd.DataFrame(
        {
            "user": rng.choice([f"{number:03d}" for number in range(USERS)], EVENTS),
            "item": rng.choice([f"i{number}" for number in range(ITEMS - 1)], EVENTS),
            "at": [START + pd.Timedelta(hours=int(hour)) for hour in hours],
        }
    )
    return users, items, events


def as_of(frame: pd.DataFrame, entity: str, time: pd.Timestamp, field: str) -> Any:
    """Return the newest value of an entity at a time, row by row."""
    best: tuple[pd.Timestamp, Any] | None = None
    for row in frame.to_dict("records"):
        if row["id"] == entity and row["timestamp"] <= time and (best is None or row["timestamp"] > best[0]):
            best = (row["timestamp"], row[field])
    return None if best is None or pd.isna(best[1]) else best[1]


def plain(value: Any) -> Any:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    return value if isinstance(value, datetime | str | bool) else float(value)


def write_parquet(folder: Path, frames: Any) -> None:
    for name, frame in zip(("users", "items", "interactions"), frames, strict=True):
        frame.to_parquet(folder / f"{name}.parquet", index=False)


def write_csv(folder: Path, frames: Any) -> None:
    for name, frame in zip(("users", "items", "interactions"), frames, strict=True):
        frame.to_csv(folder / f"{name}.csv.gz", index=False)


def write_spark(folder: Path, frames: Any) -> None:
    """Folders of parts, INT96 and naive times, epoch milliseconds for the events."""
    users, items, events = frames
    events = events.assign(at=events["at"].astype("int64") // 10**6)
    for name, frame in (("users", users), ("items", items), ("interactions", events)):
        path = folder / name
        path.mkdir()
        for column in frame.select_dtypes("datetimetz").columns:
            frame = frame.assign(**{column: frame[column].dt.tz_localize(None)})
        for part in range(0, len(frame), 17):
            table = pa.Table.from_pandas(frame.iloc[part : part + 17], preserve_index=False)
            pq.write_table(table, path / f"part-{part:05d}.parquet", use_deprecated_int96_timestamps=True)


@pytest.mark.parametrize(
    ("write", "history"),
    [
        (write_parquet, "as_of_event"),
        (write_csv, "as_of_event"),
        (write_spark, "as_of_event"),
        (write_parquet, "as_of_now"),
    ],
)
def test_every_value_is_that_of_one_row_at_a_time(tmp_path: Path, write: Any, history: str) -> None:
    from rec_ray.data.load_features import load_features
    from rec_ray.runs.context import open_feature_store

    own = tmp_path / "own"
    own.mkdir()
    frames = make_frames()
    write(own, frames)
    users, items, events = frames
    names = ColumnNames(user=("user", "id"), item=("item", "id"), time="at")
    project = init_project(tmp_path / "shop", own, names=names)
    changes = [f"features.user_history={history}", f"features.item_history={history}"]
    settings = load_settings(project.settings, changes, environ={})
    assert set(settings.features.user) == {"age", "score", "member", "city", "since"}
    now = START + pd.Timedelta(days=55)
    tables = load_features(
        open_feature_store(settings), settings.feast, settings.features, settings.evaluation, now.to_pydatetime()
    )
    rows = tables.interactions.to_pandas()
    of_events = rows[rows["item_id"].notna()].sort_values("event_order", kind="stable")
    assert of_events["user_id"].tolist() == events["user"].tolist()
    assert of_events["event_timestamp"].tolist() == events["at"].tolist()
    checked = 0
    for row in rows.to_dict("records"):
        time = now if history == "as_of_now" else row["event_timestamp"]
        for field in settings.features.user:
            right = as_of(users, row["user_id"], time, field)
            assert plain(row[field]) == plain(right), (row["user_id"], time, field)
            checked += right is not None
    assert checked > 300
    instants = [tables.split_times.test_start, now]
    catalogue = tables.items.to_pandas().to_dict("records")
    known = {name for name, first in items.groupby("id")["timestamp"].min().items() if first <= now}
    assert sorted((row["item_id"], row["as_of"]) for row in catalogue) == sorted(
        (item, pd.Timestamp(instant)) for item in known for instant in instants
    )
    for row in catalogue:
        time = now if history == "as_of_now" else row["as_of"]
        for field in settings.features.item:
            assert plain(row[field]) == plain(as_of(items, row["item_id"], time, field))
