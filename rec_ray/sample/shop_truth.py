"""True distribution of the sample shop: tastes of users, products, and the times at which tastes begin.

Input: a seed and two sizes. Output: `ShopTruth`, from which `shop` draws events and describes users and items; tests
compare a model with it. The docstring of `shop` describes the structure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rec_ray.errors import ConfigError
from rec_ray.sample.shop_words import DEPARTMENTS

DAY = 86_400_000_000
START = 1_704_067_200_000_000
"""2024-01-01 in microseconds: the first day with events."""
END = START + 366 * DAY
TASTE, ANYWHERE, NEGATIVE = 0.72, 0.20, 0.08
LEVELS = 3
OWN_LEVEL = 3.0

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True)
class ShopTruth:
    """Distribution of the events. U users, I items, L leaves; a leaf is the last part of a category path.

    Items are numbered leaf by leaf: those of leaf l are `leaf_start[l]:leaf_start[l + 1]`.
    """

    seed: int
    user_ids: pa.Array
    item_ids: pa.Array
    leaf_paths: tuple[str, ...]
    leaf_department: Ints
    """[L]"""
    leaf_start: Ints
    """[L + 1]"""
    item_leaf: Ints
    """[I]"""
    item_level: Ints
    """[I], price level 0 to 2"""
    item_popularity: Floats
    """[I], 0 for new items"""
    item_arrival: Ints
    """[I], microseconds"""
    taste_leaf: Ints
    """[U, 3], -1 if a user has fewer tastes"""
    taste_weight: Floats
    """[U, 3], sums to 1"""
    taste_start: Ints
    """[U, 3], microseconds; 0 for tastes from the start"""
    user_level: Ints
    """[U]"""
    signup: Ints
    """[U], microseconds"""

    @property
    def new_items(self) -> list[str]:
        """Ids of the items without any event."""
        return list(self.item_ids.filter(pa.array(self.item_popularity == 0)).to_pylist())

    def department_tastes(self) -> Floats:
        """Return the share of each department in each user's taste: [U, departments], rows sum to 1."""
        tastes = np.zeros((len(self.user_ids), len(DEPARTMENTS)))
        for slot in range(self.taste_leaf.shape[1]):
            department = self.leaf_department[self.taste_leaf[:, slot]]
            np.add.at(tastes, (np.arange(len(tastes)), department), self.taste_weight[:, slot])
        return tastes

    def affinity(self, users: Ints, time: int = END) -> Floats:
        """Return the probability of each item in the next liked event: [len(users), I], rows sum to 1; small shops."""
        liked = np.where(self.item_level == self.user_level[users, None], OWN_LEVEL, 1.0) * self.item_popularity
        scores = liked / liked.sum(1, keepdims=True) * ANYWHERE / (TASTE + ANYWHERE)
        weights = weights_at(self, users, np.full(len(users), time))
        for slot in range(weights.shape[1]):
            within = liked * (self.item_leaf == self.taste_leaf[users, slot][:, None])
            share = TASTE / (TASTE + ANYWHERE) * weights[:, slot] / np.maximum(within.sum(1), 1e-12)
            scores += share[:, None] * within
        return np.asarray(scores)


def draw_truth(seed: int = 0, users: int = 2000, items: int = 1000) -> ShopTruth:
    """Draw the tastes of the users and the leaves of the items. 100,000 users and 20,000 items take about a second."""
    random = np.random.default_rng([seed, 1])
    if users < 1 or items < 10:
        raise ConfigError(f"a shop has at least 1 user and 10 items; got {users} and {items}")
    leaves = max(min(8, items // 5), items // 40 if items <= 2000 else items // 50)
    paths = _leaf_paths(leaves)
    departments = list(DEPARTMENTS)
    leaf_department = np.array([departments.index(path.split("|")[0]) for path in paths])

    leaf_start = np.linspace(0, items, leaves + 1).astype(np.int64)
    item_leaf = np.repeat(np.arange(leaves), np.diff(leaf_start))
    leaf_popularity = (1.0 + random.permutation(leaves)) ** -0.4
    order = random.random(items)
    by_leaf = np.lexsort((order, item_leaf))
    rank = np.empty(items)
    rank[by_leaf] = np.arange(items) - leaf_start[item_leaf]
    popularity = (1.0 + rank) ** -0.6 * leaf_popularity[item_leaf]
    new = random.choice(items, size=max(1, round(items * 0.05)), replace=False)
    popularity[new] = 0.0
    arrival = START - (1 + random.random(items) * 400 * DAY).astype(np.int64)
    arrival[new] = END - 1 - (random.random(len(new)) * 3 * DAY).astype(np.int64)

    place = random.normal(size=(len(departments), 6))[leaf_department] + 0.7 * random.normal(size=(leaves, 6))
    near = np.exp(-((place[:, None] - place[None]) ** 2).sum(-1) / 2.0) + 1e-9
    np.fill_diagonal(near, 0.0)
    chain = np.cumsum(near, axis=1)
    steps = (chain / chain[:, -1:] + np.arange(leaves)[:, None]).ravel()
    taste_leaf = np.full((users, 3), -1)
    taste_leaf[:, 0] = random.choice(leaves, size=users, p=leaf_popularity / leaf_popularity.sum())
    for slot in (1, 2):
        start = taste_leaf[:, slot - 1]
        drawn = np.searchsorted(steps, start + random.random(users), side="right") - start * leaves
        taste_leaf[:, slot] = np.minimum(drawn, leaves - 1)
    taste_leaf[taste_leaf[:, 2] == taste_leaf[:, 0], 2] = -1
    count = random.choice([1, 2, 3], size=users, p=[0.15, 0.4, 0.45])
    taste_leaf[np.arange(3)[None] >= count[:, None]] = -1
    weight = np.where(taste_leaf >= 0, np.array([1.0, 0.7, 0.4]), 0.0)

    established = random.random(users) < 0.75
    signup = np.where(
        established, START - random.random(users) * 500 * DAY, START + random.random(users) * 0.85 * (END - START)
    ).astype(np.int64)
    last = (taste_leaf >= 0).sum(1) - 1
    drifts = (random.random(users) < 0.35) & (last > 0)
    taste_start = np.zeros((users, 3), dtype=np.int64)
    first = np.maximum(signup, START)
    day = first + (END - first) * (0.2 + 0.6 * random.random(users))
    taste_start[np.flatnonzero(drifts), last[drifts]] = day[drifts].astype(np.int64)
    return ShopTruth(
        seed=seed,
        user_ids=_ids("u", users),
        item_ids=_ids("i", items, order=random.permutation(items)),
        leaf_paths=tuple(paths),
        leaf_department=leaf_department,
        leaf_start=leaf_start,
        item_leaf=item_leaf,
        item_level=random.integers(0, LEVELS, items),
        item_popularity=popularity,
        item_arrival=arrival,
        taste_leaf=taste_leaf,
        taste_weight=weight / weight.sum(1, keepdims=True),
        taste_start=taste_start,
        user_level=random.integers(0, LEVELS, users),
        signup=signup,
    )


def weights_at(truth: ShopTruth, user: Ints, time: Ints) -> Floats:
    """Return the weights of each user's tastes at an instant, with season and drift: [rows, 3], rows sum to 1."""
    department = truth.leaf_department[truth.taste_leaf[user]]
    phase = (time[:, None] - START) / (END - START) - department / len(DEPARTMENTS)
    season = 1.0 + 0.6 * np.sin(2 * np.pi * phase)
    weights = truth.taste_weight[user] * season * (truth.taste_start[user] <= time[:, None])
    return np.asarray(weights / weights.sum(1, keepdims=True))


def _leaf_paths(leaves: int) -> list[str]:
    """Return the paths of the leaves, departments in turn; above 40 leaves a numbered range is the last part."""
    columns = [[f"{department}|{name}" for name in names] for department, names in DEPARTMENTS.items()]
    paths = [column[row] for row in range(5) for column in columns]
    if leaves <= len(paths):
        return paths[:leaves]
    return [f"{paths[leaf % len(paths)]}|Range {leaf // len(paths) + 1}" for leaf in range(leaves)]


def _ids(prefix: str, count: int, order: Ints | None = None) -> pa.Array:
    width = len(str(count))
    return pa.array([f"{prefix}{number + 1:0{width}d}" for number in (range(count) if order is None else order)])
