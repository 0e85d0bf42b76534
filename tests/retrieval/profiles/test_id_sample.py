"""Samples of ids: the same ids in both nights, exact under merging, shares with known answers."""

import numpy as np
import pyarrow as pa
import pytest

from rec_ray.retrieval.profiles.id_sample import (
    SAMPLE,
    IdSample,
    changed_shares,
    hash_ids,
    hash_value,
    kept_share,
    smallest,
)


def sample(numbers: list[int], fact: int = 1) -> IdSample:
    hashes = hash_ids(pa.array([f"u{number}" for number in numbers]))
    facts = {int(hashes[place]): {"x": fact} for place in smallest(hashes).tolist()}
    return IdSample(len(numbers), facts)


def test_hashes_of_consecutive_ids_are_spread_evenly() -> None:
    hashes = hash_ids(pa.array([f"u{number}" for number in range(20_000)]))
    assert len(np.unique(hashes)) > 19_990
    counts = np.histogram(hashes.astype(np.float64), bins=20, range=(0, 2**53))[0]
    assert counts.min() > 850 and counts.max() < 1150


def test_samples_of_blocks_merge_to_the_sample_of_all() -> None:
    parts = [sample(list(range(start, 3000, 3))) for start in range(3)]
    assert parts[0].merge(parts[1]).merge(parts[2]) == IdSample(
        3000, dict(sorted(sample(list(range(3000))).facts.items()))
    )


def test_counts_of_one_id_in_several_blocks_add_up() -> None:
    merged = sample([1, 2], 3).merge(sample([2, 3], 4), distinct=False)
    assert sorted(each["x"] for each in merged.facts.values()) == [3, 4, 7]


@pytest.mark.parametrize(("kept", "expected"), [(1.0, 1.0), (0.5, 0.5), (0.0, 0.0)])
def test_the_share_of_kept_ids(kept: float, expected: float) -> None:
    old = list(range(5000))
    new = [number for number in old if number % 10 < kept * 10] + list(range(5000, 9000))
    share, sampled = kept_share(sample(new), sample(old))
    assert share == pytest.approx(expected, abs=0.1)
    assert 50 < sampled <= SAMPLE
    assert kept_share(sample(old + list(range(5000, 6000))), sample(old))[0] == 1.0


def test_the_share_of_changed_values() -> None:
    old, new = sample(list(range(100))), sample(list(range(100)))
    for key in list(new.facts)[:25]:
        new.facts[key] = {"x": 2}
    assert changed_shares(new, old, ["x"]) == {"x": 0.25}
    assert changed_shares(sample(list(range(20))), old, ["x"]) == {}, "too few"


def test_values_have_a_hash_and_missing_ones_have_none() -> None:
    assert [hash_value(each) for each in (None, float("nan"), "", [])] == [0, 0, 0, 0]
    assert hash_value("a") != hash_value("b") and hash_value(1.5) == hash_value(1.5000000001)
    assert hash_value(["a", "b"]) != hash_value(["b", "a"])
