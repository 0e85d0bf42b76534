"""The search over bytes against brute force, by each kernel that this processor has; the plain one runs on all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rec_ray.retrieval.search import ExactTopK, Exclusions, merge_top_k, quantise_items
from rec_ray.retrieval.search.byte_products import KERNELS, available_kernels
from rec_ray.retrieval.search.int8 import ByteSearch, survivors
from tests.retrieval.search.brute_force import agree, brute_force, random_exclusions, vectors


@pytest.fixture(params=available_kernels())
def kernel(request):
    return request.param


def quantised_for(kernel, items, order=None):
    return quantise_items(items, order, KERNELS[kernel].item_bits)


def by_bytes(kernel, items, queries, k, *rules, threads=1):
    """Search with a pass over bytes whatever the number of queries, and make sure that it was one."""
    search = ExactTopK(items, threads=threads, quantised=quantised_for(kernel, items), kernel=kernel)
    allowed = rules[1] if len(rules) > 1 else None
    assert search.uses_bytes(len(queries), k, allowed)
    return search.search(queries, k, *rules)


def proven_by_bytes(kernel, items, queries, k, guesses, exclude=None):
    """Return how many lists of a first pass are proven."""
    quantised = quantised_for(kernel, items)
    search = ByteSearch(quantised, items, quantised.allow_bits(None), kernel, guesses=guesses)
    offsets = np.zeros(len(queries) + 1, np.int64)
    found, _ = search.top_k(queries, exclude or Exclusions(np.zeros(0, np.int64), offsets), k)
    return int((found[:, -1] >= 0).sum())


@pytest.mark.parametrize("size", [1, 2, 7, 33, 64, 130])
@pytest.mark.parametrize("query_count, item_count", [(1, 4096), (7, 4161), (97, 6001), (200, 4500)])
def test_bytes_equal_brute_force_over_shapes(kernel, query_count, item_count, size):
    items, queries = vectors(40, item_count, size), vectors(41, query_count, size)
    expected = brute_force(queries, items, 100)
    for k in (1, 10, 100):
        agree(by_bytes(kernel, items, queries, k), tuple(part[:, :k] for part in expected))


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("kernel", available_kernels()[:1])
def test_nothing_is_read_that_was_freed(kernel):
    """With freed memory overwritten at once; numba frees an array after the last line that names it."""
    shapes = [(kernel, 1, 4096, 7), (kernel, 97, 6001, 64), (kernel, 7, 4161, 33)]
    program = f"import test_int8 as t; [t.test_bytes_equal_brute_force_over_shapes(*shape) for shape in {shapes}]"
    paths = os.pathsep.join(path for path in (str(Path.cwd()), os.environ.get("PYTHONPATH")) if path)
    environment = {**os.environ, "MALLOC_PERTURB_": "165", "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent, env=environment, check=True)


@pytest.mark.parametrize(
    "kind",
    [
        "unit",
        "norms",
        "clusters",
        "sorted",
        "popular",
        "small",
        "large",
        "zeros",
        "few",
        "equal",
        "heavy",
        "pairs",
        "signs",
    ],
)
def test_bytes_equal_brute_force_over_kinds_of_items(kernel, kind):
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
    elif kind == "equal":
        items[1:] = items[0]
    elif kind == "heavy":  # one dimension of a hundred times the size of the others
        items[:, 5] *= 100
        queries[:, 5] *= 100
    elif kind == "pairs":  # products of neighbours that saturate 16 bits if bytes are not bounded
        items[:] = np.repeat(vectors(45, 9001, 1), 32, axis=1)
        items[:, :2] = 4 * np.sign(items[:, :2])
        queries[:] = np.sign(queries[:, :1])
    elif kind == "signs":
        items, queries = np.sign(items), np.sign(queries)
    for k in (1, 100, 281):
        agree(by_bytes(kernel, items, queries, k), brute_force(queries, items, k))


@pytest.mark.parametrize("most, share", [(0, 0.5), (5, 1.0), (400, 0.6), (400, 1.0)])
def test_bytes_with_exclusions_and_items_not_allowed(kernel, most, share):
    items, queries = vectors(46, 9001, 16), vectors(47, 140, 16)
    exclude = random_exclusions(48, 140, 9001, most)
    allowed = np.random.default_rng(49).random(9001) < share
    agree(by_bytes(kernel, items, queries, 60, exclude, allowed), brute_force(queries, items, 60, exclude, allowed))


def test_bytes_when_the_best_thousands_are_excluded(kernel):
    items, queries = vectors(50, 9000, 16), vectors(51, 13, 16)
    order, scores = brute_force(queries, items, 9000)
    for most in (3000, 8950):
        exclude = Exclusions(order[:, :most].reshape(-1), np.arange(0, 13 * most + 1, most))
        found, reached = by_bytes(kernel, items, queries, 100, exclude)
        kept = min(100, 9000 - most)
        np.testing.assert_array_equal(found[:, :kept], order[:, most : most + kept])
        np.testing.assert_array_equal(reached[:, :kept], scores[:, most : most + kept])
        assert (found[:, kept:] == -1).all()


def test_the_first_pass_proves_nearly_all_lists_and_never_a_wrong_one(kernel):
    """Or the speed is lost in repeats; and thresholds without guesses leave no list unproven but among many ties."""
    items, queries = vectors(52, 20000, 64), vectors(53, 96, 64)
    assert proven_by_bytes(kernel, items, queries, 100, guesses=True) >= 90
    assert proven_by_bytes(kernel, items, queries, 100, guesses=False) == 96
    assert proven_by_bytes(kernel, np.zeros((5000, 8), np.float32), vectors(54, 9, 8), 100, guesses=False) == 0


def test_a_threshold_that_was_too_high_is_noticed(kernel):
    items, queries = vectors(55, 9001, 16), vectors(56, 40, 16)
    expected = brute_force(queries, items, 100)
    # the first 256 items hold the best of four queries, so that thresholds guessed from them are too high for these
    best = np.unique(expected[0][:4, :60])
    rest = np.setdiff1d(np.arange(9001), best)
    misled = quantised_for(kernel, items, order=np.concatenate([best, rest]))
    search = ByteSearch(misled, items, misled.allow_bits(None), kernel, guesses=True)
    found, scores = search.top_k(queries, Exclusions(np.zeros(0, np.int64), np.zeros(41, np.int64)), 100)
    proven = found[:, -1] >= 0
    assert not proven[:4].any() and proven.sum() > 20
    agree((found[proven], scores[proven]), tuple(part[proven] for part in expected))
    agree(ExactTopK(items, threads=1, quantised=misled, kernel=kernel).search(queries, 100), expected)


def test_bytes_give_the_same_whatever_batch_and_threads_and_compile_once(kernel):
    items, queries = vectors(57, 12345, 64), vectors(58, 300, 64)
    items.flags.writeable = queries.flags.writeable = False
    expected = ExactTopK(items, threads=1, kernel="float32").search(queries, 100)
    agree(ExactTopK(items, threads=2, kernel=kernel).search(queries, 100), expected)
    for row in (0, 17, 299):
        agree(by_bytes(kernel, items, queries[row : row + 1], 100), tuple(part[row : row + 1] for part in expected))
    assert len(survivors.signatures) == 1


@pytest.mark.parametrize("size", [4, 64, 200])
def test_lists_are_proven_by_bytes_and_not_by_the_passes_that_follow(kernel, size):
    """Also if a product of neighbouring dimensions, or a sum of 16 bits, is as large as bytes allow."""
    items, queries = vectors(63, 9001, size), vectors(64, 60, size)
    assert proven_by_bytes(kernel, items, queries, 100, guesses=False) == 60
    items, queries = items + 3 * np.sign(items), np.sign(queries) + queries / 100
    assert proven_by_bytes(kernel, items, queries, 100, guesses=False) == 60


def test_bytes_of_another_kind_of_processor_are_made_anew_if_they_do_not_fit(kernel):
    items, queries = vectors(65, 5000, 16), vectors(66, 20, 16)
    expected = brute_force(queries, items, 50)
    for bits in (7, 8):
        search = ExactTopK(items, quantised=quantise_items(items, bits=bits), kernel=kernel)
        agree(search.search(queries, 50), expected)
        assert search._quantised.zero == 1 << (min(bits, KERNELS[kernel].item_bits) - 1)


def test_shards_by_bytes_merge_to_the_same_lists(kernel):
    items, queries = vectors(61, 13000, 32), vectors(62, 100, 32)
    items[::3] = items[0]
    parts = [ExactTopK(items[a:b], kernel=kernel).search(queries, 80) for a, b in ((0, 5000), (5000, 13000))]
    agree(merge_top_k(parts, [0, 5000], 80), brute_force(queries, items, 80))
