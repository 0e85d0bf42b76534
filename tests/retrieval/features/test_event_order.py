"""Order of events: found in chains of items, not found where a user's events lie in any order."""

import numpy as np
import pytest

from rec_ray.retrieval.features.event_order import EventOrder, measure_order

ITEMS, USERS, LENGTH = 60, 600, 12
OFFSETS = np.arange(0, USERS * LENGTH + 1, LENGTH)


def chains(share: float, seed: int = 0) -> np.ndarray:
    """Items that follow a chain with the given chance, else random ones of the user's group of ten."""
    rng = np.random.default_rng(seed)
    follower = rng.permutation(ITEMS)
    group = rng.integers(0, ITEMS // 10, USERS)
    items = np.empty((USERS, LENGTH), np.int64)
    for place in range(LENGTH):
        drawn = group * 10 + rng.integers(0, 10, USERS)
        items[:, place] = drawn
        if place:
            items[:, place] = np.where(rng.random(USERS) < share, follower[items[:, place - 1]], drawn)
    return items.reshape(-1)


@pytest.mark.parametrize("seed", range(5))
def test_order_is_found_in_chains_and_not_in_tastes(seed: int) -> None:
    assert measure_order(chains(0.7, seed), OFFSETS, ITEMS, seed=seed).matters
    assert not measure_order(chains(0.0, seed), OFFSETS, ITEMS, seed=seed).matters


def test_an_item_that_is_repeated_at_once_is_order_too() -> None:
    items = np.random.default_rng(0).integers(0, ITEMS, (USERS, LENGTH))
    assert not measure_order(items.reshape(-1), OFFSETS, ITEMS).matters
    items[:, 1::2] = items[:, 0::2]
    assert measure_order(items.reshape(-1), OFFSETS, ITEMS).matters


def test_the_hits_of_parts_of_the_users_add_up_and_none_is_no_order() -> None:
    found = measure_order(chains(0.7), OFFSETS, ITEMS)
    assert found.questions == pytest.approx(USERS / 2, rel=0.15)
    assert "more than" in found.describe()
    nothing = measure_order(np.zeros(0, np.int64), np.array([0]), ITEMS)
    assert nothing == EventOrder(0, 0, 0) and not nothing.matters
    assert "no better than" in nothing.describe()
