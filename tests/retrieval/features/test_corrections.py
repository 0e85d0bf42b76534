"""Of rows with the same keys and time the one created last counts, as a loop over the rows says."""

import numpy as np

from rec_ray.retrieval.features.corrections import is_superseded


def test_the_row_created_last_stays_and_the_last_of_those_created_at_once() -> None:
    rows = [  # user, key, time, created, order
        (0, 1, 10, 5, 0),
        (0, 1, 10, 7, 1),  # corrects the first
        (0, 1, 10, 6, 2),
        (0, 2, 10, 1, 3),  # another key
        (0, 1, 11, 1, 4),  # another time
        (1, 1, 10, 1, 5),  # another user
        (2, 1, 10, 3, 7),
        (2, 1, 10, 3, 6),  # created at once with the one before, which lies further back
    ]
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    assert is_superseded(*columns).tolist() == [True, False, True, False, False, False, False, True]
    assert is_superseded(*[column[:0] for column in columns]).tolist() == []


def test_random_rows_equal_a_loop() -> None:
    rng = np.random.default_rng(0)
    user, key, time, created = (rng.integers(0, 4, 500) for _ in range(4))
    order = rng.permutation(500)
    best: dict[tuple[int, int, int], tuple[int, int]] = {}
    for row in zip(user, key, time, created, order, strict=True):
        best[row[:3]] = max(best.get(row[:3], (-1, -1)), row[3:])
    expected = [best[row[:3]] != row[3:] for row in zip(user, key, time, created, order, strict=True)]
    assert is_superseded(user, key, time, created, order).tolist() == expected
