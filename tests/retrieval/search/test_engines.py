"""The other engines against `ExactTopK`: shards, a device (the processor stands in for it), an inverted file."""

from __future__ import annotations

import builtins
import itertools

import numpy as np
import pytest
import torch

from rec_ray.errors import ConfigError, DataError
from rec_ray.retrieval.search import ExactTopK, Exclusions, quantise_items, search_shards
from rec_ray.retrieval.search.device import DeviceTopK
from rec_ray.retrieval.search.faiss_ivf import FaissTopK, build_faiss_index, recall_of
from rec_ray.retrieval.search.sharded import cut_exclusions


def unit_vectors(seed, *shape):
    found = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def some_exclusions(seed, query_count, item_count, most):
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, most + 1, query_count))])
    return Exclusions(rng.integers(0, item_count, offsets[-1]), offsets)


def agree(result, expected):
    np.testing.assert_array_equal(result[0], expected[0])
    np.testing.assert_array_equal(result[1], expected[1])


@pytest.mark.parametrize("cuts", [[], [1], [40, 41], [5000, 9000]])
def test_a_catalogue_in_shards_gives_the_lists_of_one(cuts):
    items, queries = unit_vectors(1, 10000, 16), unit_vectors(2, 70, 16)
    items[::4] = items[3]  # ties across shards
    exclude, allowed = some_exclusions(3, 70, 10000, 50), np.random.default_rng(4).random(10000) < 0.7
    bounds = [0, *cuts, 10000]
    shards = [ExactTopK(items[a:b]) for a, b in itertools.pairwise(bounds)]
    whole = ExactTopK(items)
    for k in (1, 60):
        agree(search_shards(iter(shards), queries, k), whole.search(queries, k))
        expected = whole.search(queries, k, exclude, allowed)
        agree(search_shards(iter(shards), queries, k, exclude, allowed), expected)


def test_exclusions_are_cut_to_a_shard():
    cut = cut_exclusions(Exclusions(np.array([5, 9, 2, 7, 6]), np.array([0, 2, 2, 5])), 5, 8)
    np.testing.assert_array_equal(cut.values, [0, 2, 1])
    np.testing.assert_array_equal(cut.offsets, [0, 1, 1, 3])


@pytest.mark.parametrize("chunk", [500, 10000])
@pytest.mark.parametrize("k", [1, 50, 999, 3001])
def test_a_device_gives_the_lists_of_the_processor(chunk, k):
    items, queries = unit_vectors(5, 3001, 24), unit_vectors(6, 40, 24)
    exclude, allowed = some_exclusions(7, 40, 3001, 50), np.random.default_rng(8).random(3001) < 0.8
    search = DeviceTopK(items, "cpu", chunk=chunk, batch=13)
    agree(search.search(queries, k), ExactTopK(items).search(queries, k))
    agree(search.search(queries, k, exclude, allowed), ExactTopK(items).search(queries, k, exclude, allowed))


def test_a_device_proves_most_lists_and_hands_ties_over():
    items, queries = unit_vectors(9, 5000, 24), unit_vectors(10, 40, 24)
    search = DeviceTopK(items, "cpu")
    search.search(queries, 50)
    assert search.searched["float16"] == 40 and search.searched["float32"] <= 2 and search.searched["processor"] == 0
    tied = items.copy()
    tied[:2000] = items[0]
    search = DeviceTopK(tied, "cpu")
    nothing = np.zeros((2, 24), np.float32)
    agree(search.search(nothing, 50), ExactTopK(tied).search(nothing, 50))
    assert search.searched == {"float16": 2, "float32": 2, "processor": 2}
    agree(search.search(queries, 50), ExactTopK(tied).search(queries, 50))


def test_float32_separates_scores_that_are_equal_in_float16():
    rng = np.random.default_rng(16)
    near = unit_vectors(17, 1, 24) + 1e-4 * rng.standard_normal((3000, 24), dtype=np.float32)
    queries = near[:30]
    search = DeviceTopK(near, "cpu", batch=8)
    agree(search.search(queries, 20), ExactTopK(near).search(queries, 20))
    assert search.searched["float32"] == 30 and search.searched["processor"] <= 3


@pytest.mark.parametrize("size", [1.0, 3e7, 2e-9])
@pytest.mark.parametrize("unevenness", [0, 12])
def test_the_size_of_vectors_does_not_matter_on_a_device(size, unevenness):
    rng = np.random.default_rng(18)
    items = size * unit_vectors(19, 3000, 24) * 10.0 ** rng.uniform(-unevenness, 0, (3000, 1)).astype(np.float32)
    queries = unit_vectors(20, 40, 24) * 10.0 ** rng.uniform(-unevenness, 0, (40, 1)).astype(np.float32)
    search = DeviceTopK(items.astype(np.float32), "cpu")
    agree(search.search(queries, 30), ExactTopK(items.astype(np.float32)).search(queries, 30))
    assert search.searched["float32"] <= 10


def test_scores_of_float16_are_within_their_bound():
    items, queries = unit_vectors(21, 4000, 96), unit_vectors(22, 50, 96)
    choosing = DeviceTopK(items, "cpu")._passes[0]
    scores = (torch.from_numpy(queries).half() @ choosing.items[:96, :4000]).double().numpy() / choosing.scale
    off = np.abs(scores - queries.astype(np.float64) @ items.T.astype(np.float64)).max()
    assert choosing.error / 20 < off < choosing.error


def test_short_lists_and_small_catalogues_on_a_device():
    items, queries = unit_vectors(11, 30, 8), unit_vectors(12, 3, 8)
    exclude = Exclusions(np.concatenate([np.arange(28), np.arange(30)]), np.array([0, 28, 58, 58]))
    agree(DeviceTopK(items, "cpu").search(queries, 10, exclude), ExactTopK(items).search(queries, 10, exclude))
    assert DeviceTopK(np.zeros((0, 4), np.float32), "cpu").search(np.ones((2, 4), np.float32), 3)[0].shape == (2, 0)
    with pytest.raises(DataError, match="NaN"):
        DeviceTopK(items, "cpu").search(np.full((1, 8), np.nan, np.float32), 3)


@pytest.fixture(scope="module")
def clustered():
    """Items around 100 centres and queries near them; with an index: (items, queries, index)."""
    pytest.importorskip("faiss")
    rng = np.random.default_rng(13)
    centres = rng.standard_normal((100, 32))
    items = centres[rng.integers(0, 100, 20000)] + 0.4 * rng.standard_normal((20000, 32))
    queries = centres[rng.integers(0, 100, 200)] + 0.4 * rng.standard_normal((200, 32))
    items, queries = (
        (part / np.linalg.norm(part, axis=1, keepdims=True)).astype(np.float32) for part in (items, queries)
    )
    return items, queries, build_faiss_index(items)


def test_an_inverted_file_finds_nearly_all_and_orders_them_exactly(clustered):
    items, queries, index = clustered
    expected = ExactTopK(items).search(queries, 50)
    found, scores = FaissTopK(items, index, probes=40).search(queries, 50)
    assert recall_of(found, expected[0]).mean() > 0.95
    few = FaissTopK(items, index, probes=1).search(queries, 50)[0]
    assert recall_of(few, expected[0]).mean() < recall_of(found, expected[0]).mean()
    # whatever was found has the exact score, and is in the exact order
    whole, all_scores = ExactTopK(items).search(queries[:20], len(items))
    for row in range(20):
        ranks = np.flatnonzero(np.isin(whole[row], found[row]))
        np.testing.assert_array_equal(whole[row, ranks], found[row])
        np.testing.assert_array_equal(all_scores[row, ranks], scores[row])
    # every list read, and the bytes only choose: nothing is lost
    everything = FaissTopK(items, index, probes=10**6).search(queries, 50)
    assert recall_of(everything[0], expected[0]).mean() > 0.99


def test_rules_hold_in_an_inverted_file(clustered):
    items, queries, index = clustered
    search = FaissTopK(items, index, probes=10**6)
    best = ExactTopK(items).search(queries, 300)[0]
    lengths = np.arange(200) % 4 * 100
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    exclude = Exclusions(np.concatenate([row[:length] for row, length in zip(best, lengths, strict=True)]), offsets)
    allowed = np.random.default_rng(14).random(len(items)) < 0.3
    found, scores = search.search(queries, 50, exclude, allowed)
    expected = ExactTopK(items).search(queries, 50, exclude, allowed)
    assert allowed[found].all() and np.isfinite(scores).all()
    for row in range(200):
        assert not np.isin(found[row], exclude.values[offsets[row] : offsets[row + 1]]).any()
    assert recall_of(found, expected[0]).mean() > 0.97
    assert (search.search(queries[:2], 50, allowed=np.zeros(len(items), bool))[0] == -1).all()


def test_recall_by_hand():
    assert recall_of(np.array([[1, 2], [3, -1]]), np.array([[2, 5], [3, -1]])).tolist() == [0.5, 1.0]
    assert recall_of(np.array([[1, -1]]), np.array([[1, -1]])).tolist() == [1.0]
    assert recall_of(np.array([[-1, -1]]), np.array([[4, 3]])).tolist() == [0.0]
    assert recall_of(np.array([[4, 3]]), np.array([[-1, -1]])).tolist() == [1.0]


def test_without_faiss_the_error_says_what_to_install(monkeypatch):
    plain = builtins.__import__

    def refuse(name, *rest, **named):
        if name == "faiss":
            raise ModuleNotFoundError(name)
        return plain(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r"rec_ray\[faiss\].*engine: exact"):
        build_faiss_index(np.zeros((100, 4), np.float32))


def test_items_as_bytes_are_refused_when_they_are_no_numbers():
    items = unit_vectors(15, 5000, 8)
    items[7, 3] = np.nan
    with pytest.raises(DataError, match="item 7 holds NaN"):
        quantise_items(items)
