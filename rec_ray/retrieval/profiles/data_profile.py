"""Profile of the data of one night: counts, days, features and samples of ids, stored as JSON beside the version.

`profile_events` and `profile_items` make profiles of blocks, `DataProfile.merge` adds them up. The file has at most
some hundred kilobytes for any number of events, and holds hashes instead of ids and values.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rec_ray.errors import DataError
from rec_ray.retrieval.profiles.day_profile import SECONDS_A_DAY, DayProfile, merge_days, profile_days
from rec_ray.retrieval.profiles.feature_profile import FeatureProfile, profile_feature
from rec_ray.retrieval.profiles.id_sample import IdSample, hash_ids, hash_value, smallest
from rec_ray.schema import EVENT_TIMESTAMP, EVENT_TYPE, ITEM_ID, USER_ID, FeatureDeclaration, QueryTime

if TYPE_CHECKING:
    from rec_ray.retrieval.features.encoding import LabelledEvents

Array = npt.NDArray[Any]
Declarations = Mapping[str, FeatureDeclaration]

FORMAT_VERSION = 1
PROFILE = "profile.json"
"""File of the profile, below the folder of a version."""
FIRST, EVENTS = " first", " events"
"""Facts of a user: second of the first event, and number of events; the space keeps them apart from features."""


@dataclass
class DataProfile:
    """Statistics of one night.

    as_of: second up to which events were read. kept, future: rows used, and rows left out because they are later.
    oldest, newest: second of an event. days: day since 1970 -> its events. users, items: samples with a hash of each
    feature's value. sold: item -> number of events. changed: side and feature -> share of values that differ from the
    version that was live before. sources: view -> second of its newest row. moved: view -> nights in which that became
    later.
    """

    as_of: int = 0
    kept: int = 0
    future: int = 0
    oldest: int = 0
    newest: int = 0
    days: dict[int, DayProfile] = field(default_factory=dict)
    user_features: dict[str, FeatureProfile] = field(default_factory=dict)
    item_features: dict[str, FeatureProfile] = field(default_factory=dict)
    users: IdSample = field(default_factory=IdSample)
    items: IdSample = field(default_factory=IdSample)
    sold: IdSample = field(default_factory=IdSample)
    changed: dict[str, float] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)
    moved: dict[str, int] = field(default_factory=dict)

    def merge(self, other: DataProfile) -> DataProfile:
        """Add the profile of another block."""
        for name in ("kept", "future"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.as_of, self.newest = max(self.as_of, other.as_of), max(self.newest, other.newest)
        self.oldest = min((time for time in (self.oldest, other.oldest) if time), default=0)
        self.days = merge_days(self.days, other.days)
        for mine, theirs in (
            (self.user_features, other.user_features),
            (self.item_features, other.item_features),
        ):
            for name, profile in theirs.items():
                mine[name] = mine[name].merge(profile) if name in mine else profile
        self.users.merge(other.users)
        self.items.merge(other.items)
        self.sold.merge(other.sold, distinct=False)
        return self

    def without(self, users: pa.Array, items: pa.Array) -> DataProfile:
        """Return the profile without the sampled facts about some ids."""
        for sample, ids in ((self.users, users), (self.items, items), (self.sold, items)):
            for key in hash_ids(ids).tolist():
                sample.facts.pop(key, None)
        return self

    def to_json(self) -> bytes:
        """Return the content of `profile.json`."""
        values = {"format_version": FORMAT_VERSION, **vars(self)}
        return json.dumps(values, default=vars, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str) -> DataProfile:
        """Read a stored profile. where: its address, for errors.

        Raises:
            DataError: it is damaged, or another program wrote it.
        """
        try:
            values = json.loads(data)
            found = values.pop("format_version")
            if found != FORMAT_VERSION:
                raise DataError(f"{where} has format version {found!r}, this program reads {FORMAT_VERSION}")
            for side in ("user_features", "item_features"):
                values[side] = {name: _feature(each) for name, each in values[side].items()}
            for name in ("users", "items", "sold"):
                facts = {int(key): facts for key, facts in values[name]["facts"].items()}
                values[name] = IdSample(int(values[name]["total"]), facts)
            values["days"] = {int(day): _day(each) for day, each in values["days"].items()}
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{where} is damaged: {type(error).__name__}: {error}") from None


def _feature(values: dict[str, Any]) -> FeatureProfile:
    return FeatureProfile(**{**values, "bins": Counter({int(key): count for key, count in values["bins"].items()})})


def _day(values: dict[str, Any]) -> DayProfile:
    return DayProfile(**{**values, "types": Counter(values["types"])})


def profile_events(events: LabelledEvents, item_ids: pa.Array, features: Declarations) -> DataProfile:
    """Return the profile of a block of events and of the users in it, with their features as of now.

    item_ids: the catalogue. features: declarations of the user features, which are columns of the block.

    Raises:
        SchemaError: a feature cannot be read as declared.
    """
    block = events.rows
    is_event = pc.is_valid(block[ITEM_ID]).to_numpy(zero_copy_only=False)
    row = np.flatnonzero(is_event)
    users = block[USER_ID].combine_chunks().dictionary_encode()
    user = users.indices.to_numpy(zero_copy_only=False)[row]
    table = block.select([ITEM_ID, EVENT_TIMESTAMP, EVENT_TYPE]).take(pa.array(row))
    seconds = table[EVENT_TIMESTAMP].cast(pa.int64()).to_numpy() // 1_000_000
    types = table[EVENT_TYPE].combine_chunks().dictionary_encode()
    used = np.zeros(block.num_rows, bool)
    used[events.row] = True
    negative = np.zeros(block.num_rows, bool)
    negative[events.row] = events.weight == 0
    items = table[ITEM_ID].combine_chunks().dictionary_encode()
    in_catalogue = pc.is_in(items.dictionary, value_set=item_ids).to_numpy(zero_copy_only=False)
    code = items.indices.to_numpy(zero_copy_only=False)
    unknown = ~in_catalogue[code] if len(code) else np.zeros(0, bool)
    days = profile_days(
        seconds,
        user,
        types.indices.fill_null(-1).to_numpy(zero_copy_only=False),
        types.dictionary.to_pylist(),
        negative=negative[row],
        unknown=unknown,
        repeated=~used[row] & ~unknown,
    )
    now = block.take(pa.array(np.flatnonzero(~is_event).reshape(-1, len(QueryTime))[:, QueryTime.NOW]))
    first, count = _first_and_count(seconds, user, len(users.dictionary))
    sample = _sample(now, USER_ID, features, {FIRST: first, EVENTS: count})
    sold_hash = hash_ids(items.dictionary)
    sold_count = np.bincount(code, minlength=len(items.dictionary))
    sold = {int(sold_hash[place]): {EVENTS: int(sold_count[place])} for place in smallest(sold_hash).tolist()}
    return DataProfile(
        oldest=int(seconds.min()) if len(seconds) else 0,
        newest=int(seconds.max()) if len(seconds) else 0,
        days=days,
        user_features=_features(now, features),
        users=sample,
        sold=IdSample(0, sold),
    )


def profile_items(rows: pa.Table, features: Declarations) -> DataProfile:
    """Return the profile of a block of items, one row per item with its features as of now.

    Raises:
        SchemaError: a feature cannot be read as declared.
    """
    return DataProfile(item_features=_features(rows, features), items=_sample(rows, ITEM_ID, features, {}))


def _features(rows: pa.Table, features: Declarations) -> dict[str, FeatureProfile]:
    if not rows.num_rows:
        return {}
    times = rows[EVENT_TIMESTAMP] if EVENT_TIMESTAMP in rows.column_names else rows["as_of"]
    day = pc.max(times).cast(pa.int64()).as_py() / (1e6 * SECONDS_A_DAY)
    return {name: profile_feature(rows, name, declaration, day) for name, declaration in features.items()}


def _sample(rows: pa.Table, key: str, features: Declarations, more: Mapping[str, Array]) -> IdSample:
    """Return the sample of the ids of a table with one row per id."""
    hashes = hash_ids(rows[key])
    places = smallest(hashes)
    chosen = rows.take(pa.array(places))
    columns = {name: [hash_value(value) for value in chosen[name].to_pylist()] for name in features}
    columns |= {name: values[places].tolist() for name, values in more.items()}
    facts = {
        int(hashes[place]): {name: int(values[number]) for name, values in columns.items()}
        for number, place in enumerate(places.tolist())
    }
    return IdSample(rows.num_rows, facts)


def _first_and_count(seconds: Array, user: Array, users: int) -> tuple[Array, Array]:
    """Return the first second and the number of events of each user, [u] each; 0 without any event."""
    count = np.bincount(user, minlength=users)
    first = np.full(users, np.iinfo(np.int64).max)
    np.minimum.at(first, user, seconds)
    return np.where(count > 0, first, 0), count
