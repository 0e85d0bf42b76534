"""Hand-worked rules of the point-in-time join, and random rows against a search row by row."""

import numpy as np
import pyarrow as pa

from rec_ray.feature_store.as_of_join import find_newest_rows

TIME = pa.timestamp("us", "UTC")


def times(*values):
    return pa.array(values, pa.int64()).cast(TIME)


def newest(keys, at, feature_keys, feature_times, **more):
    found = find_newest_rows(pa.array(keys, pa.string()), times(*at), pa.array(feature_keys), feature_times, **more)
    return found.to_pylist()


def test_the_newest_row_at_or_before_counts_and_nothing_of_others():
    rows = ["a", "b", "a"], times(10, 15, 20)
    asked = [("a", 9), ("a", 10), ("a", 19), ("a", 20), ("b", 14), ("b", 99), ("c", 99), (None, 99)]
    assert newest(*zip(*asked, strict=True), *rows) == [None, 0, 0, 2, None, 1, None, None]


def test_a_ttl_counts_to_its_last_microsecond():
    assert newest(["a"] * 3, [10, 13, 14], ["a"], times(10), ttl=3) == [0, 0, None]


def test_of_rows_of_one_time_the_one_written_last_counts():
    keys, at = ["a"] * 3, times(5, 5, 5)
    assert newest(["a"], [5], keys, at) == [2]
    assert newest(["a"], [5], keys, at, created=times(7, 9, 8)) == [1]
    assert newest(["a"], [5], keys, at, created=times(None, 1, None)) == [1]


def test_rows_without_key_or_time_are_never_found():
    assert newest(["a"], [5], pa.array(["a", None]), times(None, 1)) == [None]
    assert newest([], [], pa.array([], pa.string()), times()) == []
    assert newest(["a"], [1], pa.array([], pa.string()), times()) == [None]


def test_random_rows_against_a_search_row_by_row():
    random = np.random.default_rng(0)
    keys, at = random.integers(0, 8, 300).astype(str), random.integers(0, 40, 300)
    own, since, written = (
        random.integers(0, 9, 200).astype(str),
        random.integers(0, 40, 200),
        random.integers(0, 3, 200),
    )
    found = newest(list(keys), at, list(own), times(*since), created=times(*written), ttl=6)
    for place, (key, moment) in enumerate(zip(keys, at, strict=True)):
        valid = [n for n in range(200) if own[n] == key and since[n] <= moment <= since[n] + 6]
        assert found[place] == max(valid, key=lambda n: (since[n], written[n], n), default=None)
