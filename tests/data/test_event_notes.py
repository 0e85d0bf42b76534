"""Suspicious findings about events, each named with the setting that changes it."""

from typing import Any

import pytest

from rec_ray.config import InteractionSettings
from rec_ray.data.event_notes import EventFacts, event_notes


def notes(facts: dict[str, Any], **settings: Any) -> list[str]:
    return event_notes(EventFacts(**{"events": 1000} | facts), InteractionSettings(**settings), 1000)


@pytest.mark.parametrize(
    "name", ["negative_view", "Dislike", "remove_from_cart", "RETURNED", "refund", "NEGATIVE feedback"]
)
def test_a_type_that_sounds_negative_and_is_not_declared_is_named_with_the_setting(name: str) -> None:
    (note,) = notes({"types": {name: 12_067, "view": 5}})
    assert note == (
        f"events of the type {name!r} (12,067) are learned as positives; if they are negative, set "
        f"features.interaction.negative_types: [{name}]"
    )
    assert notes({"types": {name: 12_067, "view": 5}}, negative_types=[name]) == []


def test_usual_types_and_types_negative_by_value_are_not_suspicious() -> None:
    assert notes({"types": {"view": 5, "purchase": 3, "rate (disliked)": 4, "(disliked)": 1}}) == []


def test_a_declared_type_that_no_event_has_is_named() -> None:
    (note,) = notes({"types": {"view": 5, "glance": 2}}, negative_types=["Glance"])
    assert note == (
        "features.interaction.negative_types names 'Glance', which no event has; the types are 'glance', 'view'"
    )


def test_values_that_are_nearly_all_negative_are_named() -> None:
    (note,) = notes({"values": 100, "disliked": 51}, value_field="rating")
    assert note.startswith("51 of 100 values of 'rating' are at or below 0 and count as negative; if such a value")
    assert (
        "51 of 100 values of 'rating' are below 3 "
        in notes({"values": 100, "disliked": 51}, value_field="rating", min_positive_value=3)[0]
    )
    assert notes({"values": 100, "disliked": 50}, value_field="rating") == []


def test_a_user_with_a_great_share_of_the_events_is_named_with_the_share() -> None:
    (note,) = notes({"events": 320_000, "largest_user": ("crawler", 300_000)})
    assert note == (
        "user 'crawler' has 300,000 of 320,000 events (94%); training learns from the newest 1,000 "
        "(features.interaction.events_per_user). If it is a crawler or a shared account, set "
        "features.interaction.exclude_users: ['crawler']"
    )
    (small,) = notes({"events": 3_000, "largest_user": ("u", 900)})
    assert "900 of 3,000 events (30%); training learns from all" in small
    assert notes({"events": 320_000, "largest_user": ("busy", 15_000)}) == []
    assert notes({"events": 20, "largest_user": ("only one", 20)}) == []
