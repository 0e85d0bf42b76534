"""Generates a shop with a known structure: users with tastes, matching products, and events between both.

Input: a seed and three sizes. Output: Arrow tables in the layout of a Feast file source, and the true distribution; a
benchmark reads the events as a stream of tables instead.

The structure, which a model is expected to find:

* Products are in `departments x categories`, about 40 in each category, and in large shops in numbered ranges below:
  the leaves of the path `category`. `name` and `description` consist of words of the category. Each product has one of
  three price levels, visible in `price` alone.
* A user has one to three leaves to buy from (`ShopTruth.taste_leaf`, weights `taste_weight`); the first is drawn by the
  popularity of leaves, the others near it in a latent space of 6 dimensions. 72 % of the events go there; 20 % go
  anywhere by popularity; 8 % are `negative_view`, shown at random and disliked. A user is three times as likely to take
  a product of the own price level.
* Popularity falls with the rank of a product in its leaf (power 0.6) and of a leaf in the shop (power 0.4).
* Season: within a year each department rises and falls by 60 %, each at a different time.
* Drift: 30 % of the users adopt their last taste only on some day (`taste_start`); from that day their features have a
  second version. `preferences` lists the tastes of that day, each with probability 0.8.
* Hardly any product occurs twice in the events of a user. Purchases and high ratings are more frequent within tastes.
* 5 % of the products are new: they arrive in the last three days and have no event.
* 8 % of the products are not `available`, 6 % have an `age_limit`, 10 % are sold in some `countries` only. Events do
  not reflect this: they express tastes, and filters apply when lists are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rec_ray.sample.shop_truth import (
    ANYWHERE,
    END,
    LEVELS,
    NEGATIVE,
    OWN_LEVEL,
    START,
    TASTE,
    Ints,
    ShopTruth,
    draw_truth,
    weights_at,
)
from rec_ray.sample.shop_words import ADJECTIVES, BRANDS, COUNTRIES, DEPARTMENTS, FILLER, MATERIALS
from rec_ray.schema import EVENT_TIMESTAMP, ITEM_ID, TIMESTAMP, USER_ID, FeatureDeclaration

TYPES = pa.array(["view", "cart", "purchase", "negative_view"])

USER_FEATURES = {
    "country": FeatureDeclaration("categorical"),
    "age": FeatureDeclaration("numeric"),
    "preferences": FeatureDeclaration("categories"),
    "signup_date": FeatureDeclaration("timestamp"),
}
ITEM_FEATURES = {
    "name": FeatureDeclaration("text"),
    "description": FeatureDeclaration("text"),
    "category": FeatureDeclaration("category_path", separator="|"),
    "brand": FeatureDeclaration("categorical"),
    "material": FeatureDeclaration("categorical"),
    "price": FeatureDeclaration("numeric"),
    "is_gift": FeatureDeclaration("categorical"),
    "arrival_date": FeatureDeclaration("timestamp"),
}
FILTER_FIELDS = ("available", "age_limit", "countries")
"""Fields of products that are independent of tastes: filters may read them, the model does not."""


@dataclass(frozen=True)
class ShopTables:
    """The three tables in the layout of a Feast file source, and the true distribution."""

    users: pa.Table
    items: pa.Table
    interactions: pa.Table
    truth: ShopTruth


def generate_shop(seed: int = 0, users: int = 2000, items: int = 1000, interactions: int = 60_000) -> ShopTables:
    """Generate a whole shop in memory; the interactions are sorted by time.

    The same arguments give the same tables. See the module's docstring for the structure.
    """
    truth = draw_truth(seed, users, items)
    events = pa.concat_tables(generate_interactions(truth, interactions)).sort_by(EVENT_TIMESTAMP)
    return ShopTables(describe_users(truth), describe_items(truth), events, truth)


def generate_interactions(truth: ShopTruth, interactions: int, chunk: int = 250_000) -> Iterator[pa.Table]:
    """Yield the events of a shop, user block by user block, each of about `chunk` rows and in the order of time.

    Columns: user_id, item_id, event_timestamp, interaction_type, rating (purchases only). Memory is bounded by `chunk`.
    5 million events of 100,000 users and 20,000 items take some ten seconds. Another `chunk` gives other events.
    """
    users = len(truth.user_ids)
    random = np.random.default_rng([truth.seed, 2])
    least = 3 if interactions >= 6 * users else 0
    activity = random.gamma(3.0, size=users)
    counts = least + random.multinomial(interactions - least * users, activity / activity.sum())
    block = np.cumsum(counts) // max(chunk, 1)
    for number in np.unique(block):
        members = np.flatnonzero(block == number)
        yield _draw_events(truth, np.repeat(members, counts[members]), np.random.default_rng([truth.seed, 3, number]))


def _draw_events(truth: ShopTruth, user: Ints, random: np.random.Generator) -> pa.Table:
    """Draw one event for each entry of `user`; entries of the same user are adjacent."""
    rows = len(user)
    first = np.maximum(truth.signup[user], START)
    time = first + ((END - first) * random.random(rows)).astype(np.int64)
    origin = random.choice(3, size=rows, p=[TASTE, ANYWHERE, NEGATIVE])
    item = np.empty(rows, dtype=np.int64)
    todo = np.arange(rows)
    for _ in range(8):
        item[todo] = _draw_items(truth, user[todo], time[todo], origin[todo], random)
        again = np.ones(rows, dtype=bool)
        again[np.unique(user * len(truth.item_ids) + item, return_index=True)[1]] = False
        todo = np.flatnonzero(again)
        if not len(todo):
            break
    draw = random.random(rows)
    liked = np.where(origin == 0, (draw > 0.5).astype(int) + (draw > 0.7), (draw > 0.8).astype(int) + (draw > 0.95))
    kind = np.where(origin == 2, 3, liked)
    stars = np.clip(np.rint(np.where(origin == 0, 4.4, 3.2) + random.normal(0, 0.7, rows)), 1, 5)
    order = np.argsort(time, kind="stable")
    return pa.table(
        {
            USER_ID: truth.user_ids.take(pa.array(user[order])),
            ITEM_ID: truth.item_ids.take(pa.array(item[order])),
            EVENT_TIMESTAMP: pa.array(time[order], TIMESTAMP),
            "interaction_type": TYPES.take(pa.array(kind[order])),
            "rating": pa.array(stars[order].astype(np.float32), mask=kind[order] != 2),
        }
    )


def _draw_items(truth: ShopTruth, user: Ints, time: Ints, origin: Ints, random: np.random.Generator) -> Ints:
    """Draw an item per row, within a leaf of the user's taste (origin 0), by popularity (1) or at random (2)."""
    weights = np.cumsum(weights_at(truth, user, time), axis=1)
    slot = (random.random(len(user))[:, None] * weights[:, -1:] < weights).argmax(1)
    leaf = truth.taste_leaf[user, slot]
    item = np.empty(len(user), dtype=np.int64)
    for level in range(LEVELS):
        liked = truth.item_popularity * np.where(truth.item_level == level, OWN_LEVEL, 1.0)
        upto = np.concatenate([[0.0], np.cumsum(liked)])
        mine = truth.user_level[user] == level
        low = np.where(origin[mine] == 0, upto[truth.leaf_start[leaf[mine]]], 0.0)
        high = np.where(origin[mine] == 0, upto[truth.leaf_start[leaf[mine] + 1]], upto[-1])
        item[mine] = np.searchsorted(upto, low + random.random(len(low)) * (high - low), side="right") - 1
    old = np.flatnonzero(truth.item_popularity > 0)
    negative = origin == 2
    item[negative] = random.choice(old, size=int(negative.sum()))
    return np.minimum(item, len(truth.item_ids) - 1)


def describe_users(truth: ShopTruth) -> pa.Table:
    """Return the features of users, one row per version, with `USER_FEATURES` and user_id, event_timestamp."""
    random = np.random.default_rng([truth.seed, 4])
    users = len(truth.user_ids)
    country = random.choice(len(COUNTRIES), size=users, p=np.arange(len(COUNTRIES), 0, -1) / 36)
    age = random.integers(18, 80, users)
    said = random.random(truth.taste_leaf.shape) < 0.8
    changes = np.flatnonzero(truth.taste_start.max(1) > 0)
    user = np.concatenate([np.arange(users), changes])
    time = np.concatenate([truth.signup, truth.taste_start.max(1)[changes]])
    known = (truth.taste_leaf[user] >= 0) & said[user] & (truth.taste_start[user] <= time[:, None])
    names = pa.array([path.split("|")[1] for path in truth.leaf_paths])
    flat = names.take(pa.array(truth.taste_leaf[user][known]))
    offsets = np.concatenate([[0], np.cumsum(known.sum(1))]).astype(np.int32)
    return pa.table(
        {
            USER_ID: truth.user_ids.take(pa.array(user)),
            EVENT_TIMESTAMP: pa.array(time, TIMESTAMP),
            "country": pa.array(COUNTRIES).take(pa.array(country[user])),
            "age": pa.array(age[user]),
            "preferences": pa.ListArray.from_arrays(pa.array(offsets), flat),
            "signup_date": pa.array(truth.signup[user], TIMESTAMP),
        }
    )


def describe_items(truth: ShopTruth) -> pa.Table:
    """Return the features of items, one row per item: `ITEM_FEATURES`, `FILTER_FIELDS`, item_id, event_timestamp."""
    random = np.random.default_rng([truth.seed, 5])
    items = len(truth.item_ids)
    words = [DEPARTMENTS[path.split("|")[0]][path.split("|")[1]].split() for path in truth.leaf_paths]
    brand = truth.leaf_department[truth.item_leaf] * 2 + random.integers(0, 5, items)
    names, descriptions = [], []
    for index, leaf in enumerate(truth.item_leaf):
        own = words[leaf]
        noun = own[random.integers(0, 6)]
        names.append(f"{ADJECTIVES[random.integers(len(ADJECTIVES))]} {noun} {BRANDS[brand[index] % len(BRANDS)]}")
        chosen = random.permutation(len(own))[:6]
        mixed = [word for place in chosen for word in (own[place], FILLER[random.integers(len(FILLER))])]
        descriptions.append(" ".join(mixed[:-1]).capitalize() + ".")
    price = np.exp(random.normal(0, 0.2, items)) * np.array([8.0, 30.0, 110.0])[truth.item_level]
    material = random.integers(0, len(MATERIALS), items)
    chance = np.random.default_rng([truth.seed, 6])
    available, limited, local = (chance.random(items) < share for share in (0.92, 0.06, 0.1))
    limits = chance.choice([16, 18], items)
    sold = [sorted(chance.choice(COUNTRIES, 3, replace=False)) if only else None for only in local]
    return pa.table(
        {
            ITEM_ID: truth.item_ids,
            EVENT_TIMESTAMP: pa.array(truth.item_arrival, TIMESTAMP),
            "name": names,
            "description": descriptions,
            "category": pa.array(truth.leaf_paths).take(pa.array(truth.item_leaf)),
            "brand": pa.array([BRANDS[number % len(BRANDS)] for number in brand], mask=random.random(items) < 0.1),
            "material": pa.array([MATERIALS[number] for number in material], mask=random.random(items) < 0.3),
            "price": np.round(price, 2),
            "is_gift": random.random(items) < 0.2,
            "arrival_date": pa.array(truth.item_arrival, TIMESTAMP),
            "available": available,
            "age_limit": pa.array(limits, mask=~limited),
            "countries": pa.array(sold, pa.list_(pa.string())),
        }
    )
