"""Exact top-k against brute force in exactly emulated float32, over shapes, ties, exclusions and shards."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from rec_ray.errors import DataError
from rec_ray.retrieval.search import (
    ExactTopK,
    Exclusions,
    exact,
    merge_top_k,
    quantise_items,
)
from rec_ray.retrieval.search import (
    float32 as float_search,
)
from rec_ray.retrieval.search import (
    int8 as int8_search,
)
from rec_ray.retrieval.search.threads import run_on_threads


def chain(queries, items):
    """Scores [q, n]: the float32 chain of fused multiply-adds in the order of dimensions, in plain arithmetic."""
    score = np.zeros((len(queries), len(items)), np.float32)
    for i in range(queries.shape[1]):
        score = (score + queries[:, i, None].astype(float) * items[None, :, i].astype(float)).astype(np.float32)
    return score


def brute_force(queries, items, k, exclude=None, allowed=None):
    scores = chain(queries, items)
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    for row in range(len(queries)) if exclude is not None else ():
        scores[row, exclude[0][exclude[1][row] : exclude[1][row + 1]]] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(scores, order, axis=1)
    return np.where(np.isinf(found), -1, order), found


def agree(result, expected):
    np.testing.assert_array_equal(result[0], expected[0])
    np.testing.assert_array_equal(result[1], expected[1])


def vectors(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def random_exclusions(seed, query_count, item_count, most):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, most + 1, query_count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Exclusions(rng.integers(0, item_count, offsets[-1]).astype(np.int32), offsets)


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


needs_bytes = pytest.mark.skipif(not int8_search.is_supported(), reason="this processor has no product of bytes")


def by_bytes(items, queries, k, *rules, threads=1):
    """Search with a pass over bytes whatever the number of queries, and make sure that it was one."""
    search = ExactTopK(items, threads=threads, quantised=quantise_items(items))
    allowed = rules[1] if len(rules) > 1 else None
    assert search.uses_bytes(len(queries), k, allowed)
    return search.search(queries, k, *rules)


def proven_by_bytes(items, queries, k, guesses, exclude=None):
    """Return how many lists of a first pass are proven."""
    quantised = quantise_items(items)
    search = int8_search.ByteSearch(quantised, items, quantised.allow_bits(None), guesses=guesses)
    offsets = np.zeros(len(queries) + 1, np.int64)
    found, _ = search.top_k(queries, exclude or Exclusions(np.zeros(0, np.int64), offsets), k)
    return int((found[:, -1] >= 0).sum())


@needs_bytes
@pytest.mark.parametrize("size", [1, 2, 7, 33, 64, 130])
@pytest.mark.parametrize("query_count, item_count", [(1, 4096), (7, 4161), (97, 6001), (200, 4500)])
def test_bytes_equal_brute_force_over_shapes(query_count, item_count, size):
    items, queries = vectors(40, item_count, size), vectors(41, query_count, size)
    expected = brute_force(queries, items, 100)
    for k in (1, 10, 100):
        agree(by_bytes(items, queries, k), tuple(part[:, :k] for part in expected))


@pytest.mark.usefixtures("processes")
@needs_bytes
def test_nothing_is_read_that_was_freed():
    """With freed memory overwritten at once; numba frees an array after the last line that names it."""
    shapes = [(1, 4096, 7), (97, 6001, 64), (7, 4161, 33)]
    program = f"import test_exact as t; [t.test_bytes_equal_brute_force_over_shapes(*shape) for shape in {shapes}]"
    environment = {**os.environ, "MALLOC_PERTURB_": "165"}
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent, env=environment, check=True)


@needs_bytes
@pytest.mark.parametrize("kind", ["unit", "norms", "clusters", "sorted", "popular", "small", "large", "zeros", "few"])
def test_bytes_equal_brute_force_over_kinds_of_items(kind):
    rng = np.random.default_rng(42)
    items, queries = vectors(43, 9001, 32), vectors(44, 60, 32)
    if kind == "unit":
        items /= np.linalg.norm(items, axis=1, keepdims=True)
    elif kind == "norms":
        items *= np.exp(3 * rng.standard_normal((9001, 1))).astype(np.float32)
    elif kind == "clusters":
        items = items[rng.integers(0, 40, 9001)] + np.float32(0.01) * vectors(45, 9001, 32)
    elif kind == "sorted":
        items = items[np.argsort(items @ queries[0])]
    elif kind == "popular":
        items += 5
    elif kind == "small":
        items *= np.float32(1e-22)
        queries *= np.float32(1e-21)
    elif kind == "large":
        items *= np.float32(1e12)
        queries *= np.float32(1e12)
    elif kind == "zeros":
        items[rng.random(9001) < 0.99] = 0
        queries[::2] = 0
    elif kind == "few":
        items = rng.integers(-1, 2, (9001, 32)).astype(np.float32)
        queries = rng.integers(-1, 2, (60, 32)).astype(np.float32)
    for k in (1, 100, 281):
        agree(by_bytes(items, queries, k), brute_force(queries, items, k))


@needs_bytes
@pytest.mark.parametrize("most, share", [(0, 0.5), (5, 1.0), (400, 0.6), (400, 1.0)])
def test_bytes_with_exclusions_and_items_not_allowed(most, share):
    items, queries = vectors(46, 9001, 16), vectors(47, 140, 16)
    exclude = random_exclusions(48, 140, 9001, most)
    allowed = np.random.default_rng(49).random(9001) < share
    agree(by_bytes(items, queries, 60, exclude, allowed), brute_force(queries, items, 60, exclude, allowed))


@needs_bytes
def test_bytes_when_the_best_thousands_are_excluded():
    items, queries = vectors(50, 9000, 16), vectors(51, 13, 16)
    order, scores = brute_force(queries, items, 9000)
    for most in (3000, 8950):
        exclude = Exclusions(order[:, :most].reshape(-1), np.arange(0, 13 * most + 1, most))
        found, reached = by_bytes(items, queries, 100, exclude)
        kept = min(100, 9000 - most)
        np.testing.assert_array_equal(found[:, :kept], order[:, most : most + kept])
        np.testing.assert_array_equal(reached[:, :kept], scores[:, most : most + kept])
        assert (found[:, kept:] == -1).all()


@needs_bytes
def test_the_first_pass_proves_nearly_all_lists_and_never_a_wrong_one():
    """Or the speed is lost in repeats; and thresholds without guesses leave no list unproven but among many ties."""
    items, queries = vectors(52, 20000, 64), vectors(53, 96, 64)
    assert proven_by_bytes(items, queries, 100, guesses=True) >= 90
    assert proven_by_bytes(items, queries, 100, guesses=False) == 96
    assert proven_by_bytes(np.zeros((5000, 8), np.float32), vectors(54, 9, 8), 100, guesses=False) == 0


@needs_bytes
def test_a_threshold_that_was_too_high_is_noticed():
    items, queries = vectors(55, 9001, 16), vectors(56, 40, 16)
    expected = brute_force(queries, items, 100)
    # the first 256 items hold the best of four queries, so that thresholds guessed from them are too high for these
    best = np.unique(expected[0][:4, :60])
    rest = np.setdiff1d(np.arange(9001), best)
    misled = quantise_items(items, order=np.concatenate([best, rest]))
    search = int8_search.ByteSearch(misled, items, misled.allow_bits(None), guesses=True)
    found, scores = search.top_k(queries, Exclusions(np.zeros(0, np.int64), np.zeros(41, np.int64)), 100)
    proven = found[:, -1] >= 0
    assert not proven[:4].any() and proven.sum() > 20
    agree((found[proven], scores[proven]), tuple(part[proven] for part in expected))
    agree(ExactTopK(items, threads=1, quantised=misled).search(queries, 100), expected)


@needs_bytes
def test_bytes_give_the_same_whatever_batch_and_threads_and_compile_once():
    items, queries = vectors(57, 12345, 64), vectors(58, 300, 64)
    items.flags.writeable = queries.flags.writeable = False
    expected = ExactTopK(items, threads=1, use_bytes=False).search(queries, 100)
    agree(ExactTopK(items, threads=2).search(queries, 100), expected)
    for row in (0, 17, 299):
        agree(by_bytes(items, queries[row : row + 1], 100), tuple(part[row : row + 1] for part in expected))
    assert len(int8_search.survivors.signatures) == 1


def test_without_a_product_of_bytes_the_lists_are_the_same(monkeypatch):
    items, queries = vectors(59, 5000, 16), vectors(60, 70, 16)
    expected = ExactTopK(items).search(queries, 30)
    monkeypatch.setattr(int8_search, "is_supported", lambda: False)
    search = ExactTopK(items)
    assert not search.uses_bytes(70, 30)
    agree(search.search(queries, 30), expected)
    agree(expected, brute_force(queries, items, 30))


def test_shards_by_bytes_merge_to_the_same_lists():
    items, queries = vectors(61, 13000, 32), vectors(62, 100, 32)
    items[::3] = items[0]
    parts = [ExactTopK(items[a:b]).search(queries, 80) for a, b in ((0, 5000), (5000, 13000))]
    agree(merge_top_k(parts, [0, 5000], 80), brute_force(queries, items, 80))
