"""What `init` proposes for the values of events, by columns as people have them."""

import pytest

from rec_ray.sample.event_values import propose_values


def even(*values: float) -> dict[float, int]:
    return dict.fromkeys(map(float, values), 10)


@pytest.mark.parametrize(
    ("column", "counts", "use", "least"),
    [
        ("rating", even(1, 2, 3, 4, 5), True, 3.0),
        ("rating", even(0.5, 1, 2, 3, 4, 5), True, 3.0),
        ("rating", even(3, 4, 5), True, 3.0),
        ("stars", even(*range(1, 11)), True, 5.5),
        ("rating", {1: 10, 2: 10, 5: 10}, True, 3.0),
        ("rating", {0: 4, 1: 3, 5: 9}, True, 3.0),
        ("rating", even(-1, 1), True, None),
        ("joke_score", even(-10, -2.5, 0, 9.75), True, None),
        ("liked", even(0, 1), True, None),
        ("clicked", {0.0: 900, 1.0: 100}, True, None),
        ("quantity", even(1, 2, 3, 4, 5), True, None),
        ("rating_count", even(1, 2, 3, 4, 5), True, None),
        ("watched", even(1, 2, 3, 7), True, None),
        ("rating", {0.0: 600, 3.0: 10, 5.0: 90, 10.0: 20}, False, None),
        ("price", {1.0: 50, 2.0: 50, 1e30: 1}, False, None),
        ("rating", {}, False, None),
        ("rating", {0.0: 5}, False, None),
        ("rating", {float("nan"): 3}, False, None),
    ],
)
def test_columns_as_people_have_them(column: str, counts: dict[float, int], use: bool, least: float | None) -> None:
    proposal = propose_values(column, counts)
    assert (proposal.use, proposal.min_positive_value) == (use, least)
    assert proposal.reason.startswith(column)


def test_the_sentence_names_the_scale_the_weight_and_how_many_are_negative() -> None:
    stars = propose_values("rating", {1.0: 5, 2.0: 5, 3.0: 20, 4.0: 30, 5.0: 40})
    assert stars.reason == (
        "rating 1 to 5, a rating of 1 to 5: weight = value / 5; below 3 counts as negative (10% of 100 values)"
    )
    thumbs = propose_values("vote", {-1.0: 25, 1.0: 75})
    assert thumbs.reason == "vote -1 to 1: values at or below 0 count as negative (25% of 100 values)"
