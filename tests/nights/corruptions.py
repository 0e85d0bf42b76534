"""Faults of a night as they happen in data pipelines: each changes the tables of a good night."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rec_ray.schema import TIMESTAMP
from tests.nights.night_shops import Night


def _set(table: pa.Table, name: str, values: object) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def _between(night: Night, start: datetime, end: datetime) -> pa.Array:
    times = night.events["event_timestamp"]
    return pc.and_(
        pc.greater_equal(times, pa.scalar(start, TIMESTAMP)), pc.less(times, pa.scalar(end, TIMESTAMP))
    ).combine_chunks()


def _last_day(night: Night, back: int = 0) -> tuple[datetime, datetime]:
    """Return start and end of the last complete day, or of one `back` days before it."""
    end = night.as_of.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=back)
    return end - timedelta(days=1), end


def price_in_cents(night: Night) -> Night:
    return replace(night, items=_set(night.items, "price", pc.multiply(night.items["price"], 100.0)))


def day_missing(night: Night) -> Night:
    gone = _between(night, *_last_day(night, back=3))
    return replace(night, events=night.events.filter(pc.invert(gone)))


def day_twice(night: Night) -> Night:
    twice = night.events.filter(_between(night, *_last_day(night)))
    return replace(night, events=pa.concat_tables([night.events, twice]))


def zone_shifted(night: Night) -> Night:
    micros = pc.subtract(night.events["event_timestamp"].cast(pa.int64()), 2 * 3600 * 1_000_000)
    return replace(night, events=_set(night.events, "event_timestamp", micros.cast(TIMESTAMP)))


def type_column_renamed(night: Night) -> Night:
    return replace(night, events=_set(night.events, "event_type", pa.nulls(night.events.num_rows, pa.string())))


def half_of_the_users(night: Night) -> Night:
    ids = pc.unique(night.events["user_id"])
    kept = ids.filter(pa.array(np.random.default_rng(1).random(len(ids)) < 0.5))
    users = night.users.filter(pc.is_in(night.users["user_id"], value_set=kept))
    return replace(night, events=night.events.filter(pc.is_in(night.events["user_id"], value_set=kept)), users=users)


def ids_rekeyed(night: Night) -> Night:
    def rekey(table: pa.Table) -> pa.Table:
        return _set(table, "user_id", pc.binary_join_element_wise("customer", table["user_id"], "-"))

    return replace(night, events=rekey(night.events), users=rekey(night.users))


def feature_all_null(night: Night) -> Night:
    return replace(night, items=_set(night.items, "category", pa.nulls(night.items.num_rows, pa.string())))


def one_client_spamming(night: Night) -> Night:
    start, end = _last_day(night)
    day = night.events.filter(_between(night, start, end))
    some = night.events.slice(0, day.num_rows)
    seconds = np.random.default_rng(2).integers(0, 86_400, some.num_rows) * 1_000_000
    times = pa.array(int(start.timestamp()) * 1_000_000 + seconds, TIMESTAMP)
    spam = _set(_set(some, "user_id", pa.array(["robot"] * some.num_rows)), "event_timestamp", times)
    return replace(night, events=pa.concat_tables([night.events, spam]))


def catalogue_replaced(night: Night) -> Night:
    new = pc.binary_join_element_wise("sku", night.items["item_id"], "-")
    return replace(night, items=_set(night.items, "item_id", new))


def future_events(night: Night) -> Night:
    day = night.events.filter(_between(night, *_last_day(night)))
    micros = pc.add(day["event_timestamp"].cast(pa.int64()), 365 * 86_400 * 1_000_000)
    return replace(night, events=pa.concat_tables([night.events, _set(day, "event_timestamp", micros.cast(TIMESTAMP))]))


def features_shuffled(night: Night) -> Night:
    order = pa.array(np.random.default_rng(3).permutation(night.items.num_rows))
    return replace(night, items=_set(night.items, "item_id", night.items["item_id"].take(order)))


def item_ids_shuffled(night: Night) -> Night:
    ids = night.items["item_id"].combine_chunks()
    other = ids.take(pa.array(np.random.default_rng(4).permutation(len(ids))))
    place = pc.index_in(night.events["item_id"], ids)
    return replace(night, events=_set(night.events, "item_id", other.take(place)))


def empty_day(night: Night) -> Night:
    gone = _between(night, *_last_day(night))
    return replace(night, events=night.events.filter(pc.invert(gone)))


def nothing_new(night: Night) -> Night:
    """Leave the events that the night before had."""
    end = pa.scalar(night.as_of - timedelta(days=1), TIMESTAMP)
    return replace(night, events=night.events.filter(pc.less(night.events["event_timestamp"], end)))


CORRUPTIONS: dict[str, Callable[[Night], Night]] = {
    each.__name__: each
    for each in (
        price_in_cents,
        day_missing,
        day_twice,
        zone_shifted,
        type_column_renamed,
        half_of_the_users,
        ids_rekeyed,
        feature_all_null,
        one_client_spamming,
        catalogue_replaced,
        future_events,
        features_shuffled,
        item_ids_shuffled,
        empty_day,
        nothing_new,
    )
}
