"""Exact top-k against brute force in exactly emulated float32, over shapes, ties, exclusions and shards."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from rec_ray.errors import DataError
from rec_ray.retrieval.search import (
    ExactTopK,
    Exclusions,
    exact,
    merge_top_k,
)
from rec_ray.retrieval.search import (
    float32 as float_search,
)
from rec_ray.retrieval.search.threads import run_on_threads
from tests.retrieval.search.brute_force import agree, brute_force, chain, random_exclusions, vectors


@pytest.mark.parametrize("size", [1, 7, 33, 64, 130])
@pytest.mark.parametrize("query_count, item_count", [(1, 1), (1, 63), (3, 65), (17, 1000), (130, 4099), (40, 9001)])
def test_equals_brute_force_over_shapes(query_count, item_count, size):
    items, queries = vectors(1, item_count, size), vectors(2, query_count, size)
    for k in (1, 10, 100):
        agree(ExactTopK(items, threads=1).search(queries, k), brute_force(queries, items, min(k, item_count)))


@pytest.mark.parametrize("k", [1, 777, 4999, 5000, 9000])
def test_k_up_to_the_catalogue_and_beyond(k):
    items, queries = vectors(3, 5000, 16), vectors(4, 9, 16)
    agree(ExactTopK(items).search(queries, k), brute_force(queries, items, min(k, 5000)))


def test_the_product_is_the_chain_of_fused_multiply_adds():
    items, queries = vectors(5, 4160, 64), vectors(6, 128, 64)
    expected = chain(queries, items)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for width in (16, 32, 64, 128):
        for rows in (64, 67, 100, 1001, 4096, 4160):
            got = torch.matmul(torch.from_numpy(items[-rows:]), torch.from_numpy(queries[:width]).t()).numpy().T
            np.testing.assert_array_equal(got, expected[:width, -rows:])
    torch.set_num_threads(before)


def test_ties_go_by_item_index():
    rng = np.random.default_rng(7)
    items = rng.integers(-1, 2, (9000, 4)).astype(np.float32)
    queries = rng.integers(-1, 2, (50, 4)).astype(np.float32)
    for k in (1, 50, 3000):
        agree(ExactTopK(items).search(queries, k), brute_force(queries, items, k))


def test_zero_vectors_give_the_first_items():
    items, queries = vectors(8, 9000, 8), np.zeros((3, 8), np.float32)
    items[4000:4100] = 0
    indices, scores = ExactTopK(items).search(queries, 20)
    np.testing.assert_array_equal(indices, np.tile(np.arange(20), (3, 1)))
    assert (scores == 0).all()
    agree(ExactTopK(np.zeros((500, 8), np.float32)).search(vectors(9, 2, 8), 5), (np.tile(np.arange(5), (2, 1)), 0))


@pytest.mark.parametrize("most", [5, 400])
def test_exclusions_act_before_the_cut(most):
    items, queries = vectors(10, 9001, 16), vectors(11, 140, 16)
    exclude = random_exclusions(12, 140, 9001, most)
    agree(ExactTopK(items).search(queries, 60, exclude), brute_force(queries, items, 60, exclude))


def test_excluding_the_best_items_brings_the_next_ones():
    items, queries = vectors(13, 5000, 16), vectors(14, 30, 16)
    search = ExactTopK(items)
    indices, scores = search.search(queries, 200)
    best = (indices[:, :150].reshape(-1), np.arange(0, 30 * 150 + 1, 150))
    agree(search.search(queries, 50, best), (indices[:, 150:], scores[:, 150:]))


def test_short_lists_end_with_minus_one():
    items, queries = vectors(15, 30, 8), vectors(16, 3, 8)
    exclude = Exclusions(np.concatenate([np.arange(28), np.arange(30)]).astype(np.int32), np.array([0, 28, 58, 58]))
    indices, scores = ExactTopK(items).search(queries, 10, exclude)
    assert sorted(indices[0, :2]) == [28, 29] and (indices[0, 2:] == -1).all() and np.isneginf(scores[0, 2:]).all()
    assert (indices[1] == -1).all() and (indices[2] >= 0).all()
    agree((indices, scores), brute_force(queries, items, 10, exclude))
    allowed = np.zeros(30, bool)
    assert (ExactTopK(items).search(queries, 10, allowed=allowed)[0] == -1).all()


@pytest.mark.parametrize("share", [0.002, 0.5, 0.999])
def test_only_allowed_items(share):
    items, queries = vectors(17, 9001, 16), vectors(18, 20, 16)
    allowed = np.random.default_rng(19).random(9001) < share
    exclude = random_exclusions(20, 20, 9001, 30)
    agree(ExactTopK(items).search(queries, 60, exclude, allowed), brute_force(queries, items, 60, exclude, allowed))


@pytest.mark.parametrize("order", ["ascending", "descending", "head"])
def test_catalogues_whose_first_tile_misleads(order):
    items, queries = np.abs(vectors(21, 20000, 8)), np.abs(vectors(22, 33, 8))
    if order == "head":
        items[:50] *= 30
    else:
        items = items[np.argsort(items.sum(1) * (1 if order == "ascending" else -1))]
    agree(ExactTopK(items).search(queries, 100), brute_force(queries, items, 100))


def test_results_do_not_depend_on_batch_threads_or_tile(monkeypatch):
    items, queries = vectors(23, 12345, 64), vectors(24, 300, 64)
    expected = ExactTopK(items, threads=1).search(queries, 100)
    agree(ExactTopK(items, threads=2).search(queries, 100), expected)
    one = ExactTopK(items, threads=2)
    for row in (0, 17, 299):
        agree(one.search(queries[row : row + 1], 100), tuple(part[row : row + 1] for part in expected))
    for tile, block in ((64, 16), (1000, 32), (20000, 64)):
        monkeypatch.setattr(float_search, "_TILE", tile)
        monkeypatch.setattr(exact, "QUERY_BLOCK", block)
        agree(ExactTopK(items, threads=1).search(queries[:70], 100), tuple(part[:70] for part in expected))


@pytest.mark.parametrize("cuts", [[5000], [10, 40, 9990], [3000, 6000, 9000]])
def test_shards_merge_to_the_same_lists(cuts):
    items, queries = vectors(25, 10000, 32), vectors(26, 20, 32)
    items[::3] = items[0]  # ties across shards
    starts, ends = [0, *cuts], [*cuts, 10000]
    parts = [ExactTopK(items[a:b]).search(queries, 80) for a, b in zip(starts, ends, strict=True)]
    width = max(part[0].shape[1] for part in parts)
    assert width == 80
    agree(merge_top_k(parts, starts, 80), ExactTopK(items).search(queries, 80))


def test_merge_of_short_parts():
    parts = [
        (np.array([[2, -1]]), np.array([[0.5, -np.inf]], np.float32)),
        (np.array([[0, 1]]), np.array([[0.7, 0.5]], np.float32)),
    ]
    indices, scores = merge_top_k(parts, [0, 10], 5)
    np.testing.assert_array_equal(indices, [[10, 2, 11, -1]])
    np.testing.assert_array_equal(scores, np.array([[0.7, 0.5, 0.5, -np.inf]], np.float32))


def test_read_only_and_unaligned_items_are_not_copied_or_written():
    items, queries = vectors(27, 5000, 16), vectors(28, 4, 16)
    expected = brute_force(queries, items, 7)
    items.flags.writeable = False
    search = ExactTopK(items)
    assert search._items.data_ptr() == items.ctypes.data
    agree(search.search(queries, 7), expected)


def test_bad_input_is_refused():
    items = vectors(29, 100, 4)
    search = ExactTopK(items)
    with pytest.raises(DataError, match="query 1 holds NaN"):
        search.search(np.array([[0, 0, 0, 0], [0, np.nan, 0, 0]], np.float32), 3)
    with pytest.raises(DataError, match="range of float32"):
        search.search(np.full((1, 4), 3e38, np.float32), 3)
    with pytest.raises(ValueError, match="queries must be"):
        search.search(vectors(1, 2, 5), 3)
    with pytest.raises(ValueError, match="k must be"):
        search.search(vectors(1, 2, 4), 0)
    with pytest.raises(ValueError, match="item indices"):
        search.search(vectors(1, 1, 4), 3, (np.array([100]), np.array([0, 1])))
    with pytest.raises(ValueError, match="offsets"):
        search.search(vectors(1, 2, 4), 3, (np.array([1]), np.array([0, 1])))
    items[5, 1] = np.inf
    with pytest.raises(DataError, match="item 5"):
        ExactTopK(items)


def test_no_queries_and_no_items():
    indices, scores = ExactTopK(vectors(30, 10, 4)).search(np.zeros((0, 4), np.float32), 3)
    assert indices.shape == scores.shape == (0, 3)
    assert ExactTopK(np.zeros((0, 4), np.float32)).search(vectors(31, 2, 4), 3)[0].shape == (2, 0)


def in_new_thread(function):
    """Return the result of a function called in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


@pytest.mark.parametrize("threads", [1, 2])
def test_searches_of_several_threads_agree_and_leave_the_number_of_torch_threads(threads):
    items, queries = vectors(32, 3000, 16), vectors(33, 600, 16)
    search = ExactTopK(items, threads=threads)
    expected = search.search(queries, 9)
    ranks = search.target_ranks(queries, expected[0][:, 4], np.arange(601))
    assert (ranks == 5).all()
    before = torch.get_num_threads()
    started = threading.Barrier(6)
    torch.set_num_threads(3)

    def serve(number):
        counts = {torch.get_num_threads()}
        started.wait()
        for _ in range(5):
            rows = slice(number * 100, number * 100 + 100)
            found = search.search(queries[rows], 9)
            agree(found, tuple(part[rows] for part in expected))
            places = search.target_ranks(queries[rows], expected[0][rows, 4], np.arange(101))
            assert (places == 5).all()
            counts |= {torch.get_num_threads(), in_new_thread(torch.get_num_threads)}
        return counts

    try:
        with ThreadPoolExecutor(6) as pool:
            assert set().union(*pool.map(serve, range(6))) == {3}
        assert torch.get_num_threads() == in_new_thread(torch.get_num_threads) == 3
    finally:
        torch.set_num_threads(before)


def test_an_error_in_a_search_thread_reaches_the_caller():
    def fail():
        raise ValueError("no result")

    with pytest.raises(ValueError, match="no result"):
        run_on_threads(fail, 2)
    counts = []
    run_on_threads(lambda: counts.append(torch.get_num_threads()), 2)
    assert counts == [1, 1]


def test_without_a_product_of_bytes_the_lists_are_the_same():
    items, queries = vectors(59, 5000, 16), vectors(60, 70, 16)
    search = ExactTopK(items, kernel="float32")
    assert not search.uses_bytes(70, 30)
    agree(search.search(queries, 30), ExactTopK(items).search(queries, 30))
    agree(search.search(queries, 30), brute_force(queries, items, 30))
