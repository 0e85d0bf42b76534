"""Small shops of known structure: tastes in groups, chains of items, repeats, and features that say nothing or much.

Options come in, three Parquet files go out, as somebody would bring them to `rec-ray init --from`. On each of them a
retrieval model can be at least as good as counting; one that collapsed stands at popularity.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

START = pd.Timestamp("2024-01-01", tz="UTC")


@dataclass(frozen=True)
class Shop:
    """Options of a shop.

    loyal: chance that an event is of the user's group, or goes on along the chain. skew: exponent of popularity.
    category: items name their group. item_numbers, user_numbers: columns that say nothing; scale: of the item numbers.
    chain: each item has a follower. repeats: chance that an event repeats the one before. heavy: a few users have most
    events. types: events have one of three types. rated: events of the user's own group have high ratings. text: items
    have a title that names their group. late: users and items are stamped with the end. day_ties: times are whole days.
    """

    users: int = 1500
    items: int = 400
    events: int = 30_000
    groups: int = 8
    loyal: float = 0.8
    skew: float = 0.6
    category: bool = True
    item_numbers: int = 0
    user_numbers: int = 1
    scale: float = 1.0
    chain: bool = False
    repeats: float = 0.0
    heavy: bool = False
    types: bool = False
    rated: bool = False
    text: bool = False
    late: bool = False
    day_ties: bool = False


SHOPS = {
    "plain": Shop(users=1300, items=350, events=24_000),
    "price": Shop(item_numbers=1),
    "price_only": Shop(users=1000, items=300, events=20_000, item_numbers=1, category=False),
    "two_numbers": Shop(item_numbers=2, category=False),
    "large_price": Shop(users=1400, item_numbers=1, scale=1e9),
    "order_lines": Shop(2500, 300, 14_000, skew=0.9, category=False, item_numbers=2, user_numbers=5),
    "ids_only": Shop(groups=6, category=False, user_numbers=0),
    "few_ids": Shop(users=600, items=200, events=7000, groups=5, category=False, user_numbers=0),
    "small": Shop(users=200, items=80, events=2500, groups=4),
    "few_items": Shop(items=30, events=12_000, groups=5),
    "wide": Shop(users=2500, items=2000, events=40_000, groups=25),
    "chain": Shop(users=1200, chain=True, item_numbers=1),
    "strict_chain": Shop(users=1000, chain=True, loyal=0.95),
    "repeats": Shop(repeats=0.4, item_numbers=1),
    "late": Shop(late=True, item_numbers=1),
    "ties": Shop(day_ties=True, item_numbers=2, user_numbers=6),
    "typed": Shop(types=True, text=True, item_numbers=1),
    "rated": Shop(rated=True),
}


def write_shop(folder: Path, shop: Shop, seed: int) -> None:
    """Write `users.parquet`, `items.parquet` and `interactions.parquet` of a shop; the seed decides everything."""
    rng = np.random.default_rng(seed)
    item_group, user_group = (rng.integers(0, shop.groups, count) for count in (shop.items, shop.users))
    events = _events(rng, shop, item_group, user_group)
    users = pd.DataFrame({"user_id": [f"c{user}" for user in range(shop.users)]})
    for number in range(shop.user_numbers):
        users[f"number{number}"] = rng.normal(40, 15, shop.users).round(1)
    items = pd.DataFrame({"item_id": [f"p{item}" for item in range(shop.items)]})
    if shop.category:
        items["department"] = [f"department {group}" for group in item_group]
    for number in range(shop.item_numbers):
        items[f"price{number}"] = (np.exp(rng.normal(3, 1, shop.items)) * shop.scale).round(2)
    if shop.text:
        colours = rng.choice(["red", "blue", "green"], shop.items)
        items["title"] = [f"{colour} thing of kind{group}" for colour, group in zip(colours, item_group, strict=True)]
    if shop.late:
        users["event_timestamp"] = items["event_timestamp"] = START + pd.Timedelta(days=366)
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in (("users", users), ("items", items), ("interactions", events)):
        table.to_parquet(folder / f"{name}.parquet", index=False)


def _events(rng: np.random.Generator, shop: Shop, item_group: Any, user_group: Any) -> pd.DataFrame:
    popularity = 1 / (1 + np.arange(shop.items)) ** shop.skew
    rng.shuffle(popularity)
    activity = rng.pareto(1.2, shop.users) + 0.3 if shop.heavy else np.ones(shop.users)
    user = np.sort(rng.choice(shop.users, shop.events, p=activity / activity.sum()))
    # All draws at once; the chain and the repeats are followed one event at a time.
    item = rng.choice(shop.items, shop.events, p=popularity / popularity.sum())
    if not shop.chain:
        loyal = rng.random(shop.events) < shop.loyal
        for group in range(shop.groups):
            pool = np.flatnonzero(item_group == group)
            own = np.flatnonzero(loyal & (user_group[user] == group))
            if len(pool):
                item[own] = rng.choice(pool, len(own), p=popularity[pool] / popularity[pool].sum())
    follower = rng.permutation(shop.items)
    goes_on = rng.random(shop.events) < (shop.loyal if shop.chain else 0.0)
    again = rng.random(shop.events) < shop.repeats
    for place in range(1, shop.events):
        if user[place] == user[place - 1]:
            if goes_on[place]:
                item[place] = follower[item[place - 1]]
            if again[place]:
                item[place] = item[place - 1]
    second = rng.integers(0, 366 * 86_400, shop.events)
    second = second[np.lexsort((second, user))]
    if shop.day_ties:
        second = second // 86_400 * 86_400
    events = pd.DataFrame(
        {
            "user_id": [f"c{number}" for number in user],
            "item_id": [f"p{number}" for number in item],
            "event_timestamp": START + pd.to_timedelta(second, unit="s"),
        }
    )
    if shop.types:
        events["interaction_type"] = rng.choice(["view", "cart", "purchase"], shop.events, p=[0.7, 0.2, 0.1])
    if shop.rated:
        own = item_group[item] == user_group[user]
        events["rating"] = np.where(own, rng.choice([4, 5], shop.events), rng.choice([1, 2], shop.events)).astype(float)
    return events.iloc[np.argsort(second, kind="stable")]
