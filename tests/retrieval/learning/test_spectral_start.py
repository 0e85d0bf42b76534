"""Item vectors from counts: directions of a decomposition, groups, items without users, and several workers."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import torch

from rec_ray.retrieval.features.batch import FeatureBatch, FeatureShape
from rec_ray.retrieval.features.catalogue import Catalogue
from rec_ray.retrieval.learning.spectral_start import spectral_vectors, start_from_counts
from rec_ray.retrieval.model.towers import TABLE_STD, build_two_tower


def ragged(users: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([item for user in users for item in user], np.int64), np.cumsum([0, *map(len, users)])


def vectors_of(users: list[list[int]], items: int, size: int) -> np.ndarray:
    return on_all(items, spectral_vectors(*ragged(users), items, size, total=lambda values: values, seed=0))


def on_all(items: int, found: tuple[torch.Tensor, torch.Tensor]) -> np.ndarray:
    """Return the vectors of all items, zeros for those without a user."""
    vectors = np.zeros((items, found[1].shape[1]))
    vectors[found[0]] = found[1].numpy()
    return vectors


def random_users(seed: int, users: int = 80, items: int = 30) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, items, rng.integers(1, 12)).tolist() for _ in range(users)]


def test_cosines_are_those_of_a_truncated_decomposition() -> None:
    users, items, size = random_users(1), 30, 6
    matrix = np.zeros((len(users), items))
    for row, user in enumerate(users):
        matrix[row, user] = 1.0
    matrix /= np.sqrt(np.maximum(matrix.sum(0), 1))
    _, strength, directions = np.linalg.svd(matrix, full_matrices=False)
    wanted = directions[:size].T * strength[:size] ** 2
    wanted /= np.maximum(np.linalg.norm(wanted, axis=1, keepdims=True), 1e-12)
    found = vectors_of(users, items, size)
    # Five rounds separate neighbouring singular values only roughly; the directions together are what counts.
    assert np.abs((found @ found.T) - (wanted @ wanted.T))[1:, 1:].mean() < 0.02


def test_items_of_the_same_users_coincide_and_of_other_users_are_orthogonal() -> None:
    found = vectors_of([[1, 2], [2, 1], [1, 2], [3, 4], [4, 3]], 6, 4)
    assert np.allclose(
        found @ found.T,
        np.array([[0, 0, 0, 0, 0, 0], *[[0, 1, 1, 0, 0, 0]] * 2, *[[0, 0, 0, 1, 1, 0]] * 2, [0] * 6]),
        atol=1e-4,
    )


def test_an_item_without_users_has_zeros_and_repeats_count_once() -> None:
    once, twice = vectors_of([[1, 2], [2, 3]], 5, 3), vectors_of([[1, 1, 1, 2], [2, 3, 3]], 5, 3)
    assert np.allclose(once, twice, atol=1e-5)
    assert not once[[0, 4]].any() and np.allclose(np.linalg.norm(once[1:4], axis=1), 1, atol=1e-5)


def test_no_positive_at_all_and_fewer_items_than_directions() -> None:
    assert not vectors_of([], 4, 8).any()
    assert vectors_of([[1, 2], [2]], 3, 64).shape == (3, 64)


def test_two_workers_get_the_vectors_of_one() -> None:
    users, items, size = random_users(2), 30, 5
    barrier, shared = threading.Barrier(2), {}

    def run(worker: int) -> np.ndarray:
        def total(values: torch.Tensor) -> torch.Tensor:
            shared[worker] = values
            barrier.wait()
            summed = shared[0] + shared[1]
            barrier.wait()
            return summed

        return on_all(items, spectral_vectors(*ragged(users[worker::2]), items, size, total=total, seed=0))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, range(2))
    assert np.array_equal(first, second)
    one = vectors_of(users, items, size)
    assert np.allclose(first @ first.T, one @ one.T, atol=1e-3)


def test_a_model_starts_at_the_vectors_and_keeps_the_rows_of_uncounted_items() -> None:
    shape = asdict(FeatureShape())
    model = build_two_tower(vocabulary_size=4, item_shape=shape, user_shape=shape, embedding_size=8)
    before = model.item_tower.ids.weight.detach().clone()
    # Items 1 to 5 have the rows 3, 2, 1, 0 (no row of its own) and 0.
    id_index = torch.tensor([0, 3, 2, 1, 0, 0])
    no_features = FeatureBatch.from_numpy(
        np.zeros((6, 0), np.float32), np.zeros(0, np.int64), np.zeros((6, 0), np.int64), np.zeros((6, 0))
    )
    catalogue = Catalogue(pa.array("abcde"), id_index, np.ones(6, bool), np.zeros(6, np.int64), no_features)
    start_from_counts(model, catalogue, *ragged([[1, 2], [1, 2], [4, 5]]), total=lambda values: values, seed=0)
    after = model.item_tower.ids.weight.detach()
    assert torch.equal(after[[0, 1]], before[[0, 1]])
    assert torch.allclose(after[2], after[3], atol=1e-6)
    assert torch.allclose(after[3].norm(), torch.tensor(TABLE_STD * 8**0.5))
