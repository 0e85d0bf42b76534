"""A map puts what is similar together, is the same each time, and can be made of few points."""

import numpy as np
import pytest

from rec_ray.reports.item_map import map_vectors, principal_components


def test_groups_of_similar_vectors_are_apart():
    generator = np.random.default_rng(0)
    middles = np.linalg.qr(generator.normal(size=(16, 16)))[0][:5]
    group = np.repeat(np.arange(5), 24)
    lengths = generator.uniform(0.1, 9.0, size=(120, 1))
    vectors = (middles[group] + 0.1 * generator.normal(size=(120, 16))) * lengths
    places = map_vectors(vectors)
    assert places.shape == (120, 2)
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (group[distances.argmin(axis=1)] == group).all(), "the nearest neighbour of each is of its group"
    together = group[:, None] == group[None]
    np.fill_diagonal(distances, 0)
    assert distances[~together].mean() > 2 * distances[together].mean()
    assert np.array_equal(map_vectors(vectors), places)


@pytest.mark.parametrize("vectors", [np.zeros((1, 4)), np.ones((3, 4)), np.ones((9, 4)), np.array([[1.0], [2.0]])])
def test_too_few_or_equal_points_have_a_place_all_the_same(vectors):
    places = map_vectors(vectors)
    assert places.shape == (len(vectors), 2)
    assert np.isfinite(places).all()


def test_principal_components_find_the_plane_of_points():
    generator = np.random.default_rng(0)
    plane = generator.normal(size=(50, 2)) * [5.0, 2.0]
    turn = np.linalg.qr(generator.normal(size=(8, 8)))[0][:2]
    places = principal_components(plane @ turn + 3.0)
    distances = np.linalg.norm(plane[:, None] - plane[None], axis=2)
    assert np.allclose(np.linalg.norm(places[:, None] - places[None], axis=2), distances)
    assert places[:, 0].std() > places[:, 1].std()
    assert (places.max(axis=0) >= -places.min(axis=0)).all()
