"""Shops of three kinds whose data grow night by night, and the profile of a night as a run makes it.

shop: the generated shop with user and item features. reviews: sparse, dates without hours, as in published review data.
sessions: short visits of people who never come back, with a daily rhythm, as in session data.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rec_ray.retrieval.features.encoding import Labelling, label_events
from rec_ray.retrieval.profiles.data_profile import DataProfile, profile_events, profile_items
from rec_ray.retrieval.profiles.id_sample import hash_ids
from rec_ray.sample.shop import generate_shop
from rec_ray.schema import INTERACTIONS, TIMESTAMP, FeatureDeclaration

START = datetime(2024, 1, 1, tzinfo=UTC)
PRICED = {"price": FeatureDeclaration("numeric"), "category": FeatureDeclaration("category_path", separator="|")}


@dataclass(frozen=True)
class Night:
    """Tables as a feature store returns them at one instant; users and items have one row per id."""

    events: pa.Table
    users: pa.Table
    items: pa.Table
    as_of: datetime
    user_features: dict[str, FeatureDeclaration]
    item_features: dict[str, FeatureDeclaration]
    negative_types: tuple[str, ...] = ()
    sources: tuple[tuple[str, datetime], ...] = ()

    def until(self, as_of: datetime) -> Night:
        """Return the same data as they were at an earlier instant."""
        earlier = [_before(table, as_of) for table in (self.events, self.users, self.items)]
        return replace(self, events=earlier[0], users=earlier[1], items=earlier[2], as_of=as_of)


def _before(table: pa.Table, as_of: datetime) -> pa.Table:
    return table.filter(pc.less(table["event_timestamp"], pa.scalar(as_of, TIMESTAMP)))


def shop() -> Night:
    """The generated shop: growing, 40,000 events of 1,500 users in a year."""
    tables = generate_shop(3, 1500, 500, 40_000)
    events = tables.interactions.rename_columns(["user_id", "item_id", "event_timestamp", "event_type", "event_value"])
    newest = tables.users.sort_by("event_timestamp")
    place = pc.index_in(pc.unique(newest["user_id"]), newest["user_id"])
    users = newest.take(place)
    user = {"country": FeatureDeclaration("categorical"), "age": FeatureDeclaration("numeric")}
    user |= {"preferences": FeatureDeclaration("categories"), "signup_date": FeatureDeclaration("timestamp")}
    item = {**PRICED, "brand": FeatureDeclaration("categorical"), "description": FeatureDeclaration("text")}
    end = START + timedelta(days=366)
    return Night(events, users, tables.items, end, user, item, ("negative_view",))


def reviews() -> Night:
    """Sparse data without user features: 4,000 users, 1,500 items, 24,000 purchases in 300 days, dates only."""
    random = np.random.default_rng(5)
    rows, days = 24_000, 300
    day = np.sort(random.integers(0, days, rows))
    items = (random.pareto(1.1, rows) * 40).astype(np.int64) % 1500
    events = _events(random.integers(0, 4000, rows), items, day * 86_400, ["purchase"], np.zeros(rows, np.int64))
    return _night(random, events, 1500, days, users=4000)


def sessions() -> Night:
    """Visits of strangers, most in the evening, two event types: 40,000 events in 90 days."""
    random = np.random.default_rng(6)
    visits, days = 9000, 90
    length = 1 + random.geometric(0.28, visits)
    hour = np.clip(random.normal(18, 4, visits), 0, 23.8)
    begin = (np.sort(random.integers(0, days, visits)) * 86_400 + hour * 3600).astype(np.int64)
    user = np.repeat(np.arange(visits), length)
    step = np.arange(len(user)) - np.repeat(np.cumsum(length) - length, length)
    items = (random.pareto(1.3, len(user)) * 30).astype(np.int64) % 800
    kinds = (random.random(len(user)) < 0.1).astype(np.int64)
    events = _events(user, items, np.repeat(begin, length) + step * 40, ["click", "buy"], kinds)
    return _night(random, events, 800, days, users=0)


def _events(user: np.ndarray, item: np.ndarray, second: np.ndarray, types: list[str], kind: np.ndarray) -> pa.Table:
    return pa.table(
        {
            "user_id": [f"u{number}" for number in user],
            "item_id": [f"i{number}" for number in item],
            "event_timestamp": pa.array((int(START.timestamp()) + second) * 1_000_000, TIMESTAMP),
            "event_type": pa.array(types).take(pa.array(kind)),
            "event_value": pa.nulls(len(user), pa.float32()),
        }
    )


def _night(random: np.random.Generator, events: pa.Table, items: int, days: int, users: int) -> Night:
    departments = random.integers(0, 6, items)
    catalogue = pa.table(
        {
            "item_id": [f"i{number}" for number in range(items)],
            "event_timestamp": pa.array([START - timedelta(days=1)] * items, TIMESTAMP),
            "price": np.exp(random.normal(3, 1, items)).round(2),
            "category": [f"dept {number}|shelf {random.integers(4)}" for number in departments],
        }
    )
    people = pa.table(
        {
            "user_id": pa.array([f"u{number}" for number in range(users)], pa.string()),
            "event_timestamp": pa.array([START - timedelta(days=1)] * users, TIMESTAMP),
        }
    )
    return Night(events, people, catalogue, START + timedelta(days=days), {}, PRICED)


def from_folder(folder: Path) -> Night:
    """Real tables, `interactions.parquet` and perhaps `items.parquet`: the first tenth of the users by a hash."""
    rows = pq.read_table(folder / "interactions.parquet")
    hashes = hash_ids(rows["user_id"])
    events = rows.filter(pa.array(hashes < 2**53 // 10)).sort_by("event_timestamp")
    events = events.rename_columns({"interaction_type": "event_type"})
    events = events.append_column("event_value", pa.nulls(events.num_rows, pa.float32()))
    features = {}
    if (folder / "items.parquet").exists():
        items = pq.read_table(folder / "items.parquet")
        features = {"categories": FeatureDeclaration("categories")}
    else:
        items = pa.table({"item_id": pc.unique(rows["item_id"])})
    first = pa.array([pc.min(rows["event_timestamp"]).as_py() - timedelta(days=1)] * items.num_rows, TIMESTAMP)
    users = pa.table({"user_id": pa.array([], pa.string()), "event_timestamp": pa.array([], TIMESTAMP)})
    newest: datetime = pc.max(events["event_timestamp"]).as_py()
    end = newest.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return Night(events, users, items.append_column("event_timestamp", first), end, {}, features)


SHOPS: dict[str, Callable[[], Night]] = {"shop": shop, "reviews": reviews, "sessions": sessions}
REAL = [Path(each) for each in os.environ.get("REC_RAY_NIGHTS_DATA", "").split(":") if each]
"""Folders of real tables that `make nights` reads too; none are part of the project."""
SHOPS |= {f"{folder.name} data": partial(from_folder, folder) for folder in REAL}


def profile_night(night: Night) -> DataProfile:
    """Return the profile of a night, from tables through the block of a run."""
    kept = _before(night.events, night.as_of)
    block = _block(night, kept)
    item_ids = pc.unique(night.items["item_id"].combine_chunks())
    item_ids = item_ids.take(pc.sort_indices(item_ids))
    rules = Labelling({}, night.negative_types, "time", night.as_of, night.as_of)
    profile = profile_events(label_events(block, item_ids, rules), item_ids, night.user_features)
    profile.merge(profile_items(night.items, night.item_features))
    profile.as_of, profile.kept = int(night.as_of.timestamp()), kept.num_rows
    profile.future = night.events.num_rows - kept.num_rows
    return DataProfile.from_json(profile.to_json(), "memory")


def _block(night: Night, events: pa.Table) -> pa.Table:
    """Return the rows of all users with three query rows each, and the user features on every row."""
    users = pc.unique(pa.chunked_array([*events["user_id"].chunks, *night.users["user_id"].chunks]))
    queries = pa.table(
        {
            "user_id": users.take(pa.array(np.repeat(np.arange(len(users)), 3))),
            "event_timestamp": pa.array([night.as_of] * 3 * len(users), TIMESTAMP),
        }
    )
    rows = pa.concat_tables([events, queries], promote_options="default")
    order = pa.array(np.arange(rows.num_rows))
    rows = rows.append_column("event_order", order).sort_by(
        [("user_id", "ascending"), ("event_timestamp", "ascending"), ("event_order", "ascending")]
    )
    block = rows.select(INTERACTIONS.names).cast(INTERACTIONS)
    place = pc.index_in(rows["user_id"], night.users["user_id"].combine_chunks())
    for name in night.user_features:
        block = block.append_column(name, night.users[name].take(place))
    return block
