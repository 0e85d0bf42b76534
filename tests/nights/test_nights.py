"""Corrupted nights are refused or warned about, and thirty good nights in a row are not.

The whole matrix is `make nights`; a part of it runs always. The checks of data need no model, so a night is two
profiles of tables.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from rec_ray.config import CheckSettings
from rec_ray.retrieval.profiles.checks import PASSED, Check, decide, worst_of
from rec_ray.retrieval.profiles.compare import compare_profiles, record_history
from rec_ray.retrieval.profiles.data_profile import DataProfile
from tests.nights.corruptions import CORRUPTIONS
from tests.nights.night_shops import SHOPS, Night, profile_night

NIGHTS = 30
WARNED_ONLY = {"nothing_new"}
"""A refusal would keep lists that are as old, so old data only warn."""
# The check that is meant for each corruption; others may find it too.
FOUND_BY = {
    "price_in_cents": "data.shift.item.price",
    "day_missing": "data.past_days_missing",
    "day_twice": "data.repeats",
    "zone_shifted": "data.times_moved",
    "type_column_renamed": "data.event_types",
    "half_of_the_users": "data.users_kept",
    "ids_rekeyed": "data.users_kept",
    "feature_all_null": "data.nulls.item.category",
    "one_client_spamming": "data.top_user",
    "catalogue_replaced": "data.items_kept",
    "future_events": "data.future_events",
    "features_shuffled": "data.changed.item.category",
    "item_ids_shuffled": "data.order_of_items",
    "empty_day": "data.events_a_day",
    "nothing_new": "data.new_events",
    "dead_source": "data.source.items",
}
FEATURES = {"price_in_cents": "price", "feature_all_null": "category", "features_shuffled": "category"}
"""Item features that a corruption changes."""
RESULTS = os.environ.get("REC_RAY_NIGHTS_RESULTS")
"""File to which the matrix appends its cells as JSON lines, for the table in the documentation."""


def note(result: dict[str, Any]) -> None:
    if RESULTS:
        with Path(RESULTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


def compare(new: DataProfile, live: DataProfile) -> list[Check]:
    settings = CheckSettings()
    return decide(compare_profiles(new, live, loss=settings.loss, shift=settings.shift), settings.data)


@cache
def whole(name: str) -> Night:
    return SHOPS[name]()


@cache
def live_profile(name: str) -> DataProfile:
    """The profile of the live version, ten days before the end of the data, at two in the morning."""
    profile = profile_night(night_before(name, 10))
    profile.sources = {"items": int(night_before(name, 10).as_of.timestamp()) - 3600}
    profile.moved = {"items": 3}
    return profile


def night_before(name: str, days: int) -> Night:
    end = whole(name).as_of
    return whole(name).until(end - timedelta(days=days) + timedelta(hours=2))


def corrupted(name: str, corruption: str) -> DataProfile:
    good = night_before(name, 9)
    if corruption == "dead_source":
        profile = profile_night(good)
        profile.sources = live_profile(name).sources
        return profile
    return profile_night(CORRUPTIONS[corruption](good))


def require_found(name: str, corruption: str) -> None:
    checks = compare(corrupted(name, corruption), live_profile(name))
    found = {each.name for each in checks if each.verdict != PASSED}
    verdict = worst_of(checks)
    note({"shop": name, "corruption": corruption, "verdict": verdict, "by": sorted(found)})
    # In sparse data most items have one event, so their order says nothing, and other items have one instead.
    assert FOUND_BY[corruption] in found or found == {"data.items_with_events"}, checks
    assert verdict == ("warned" if corruption in WARNED_ONLY | {"dead_source"} else "refused")


def false_verdicts(name: str, nights: int) -> Iterator[tuple[int, Check]]:
    """Yield the checks that do not pass in good nights, each compared with the night before."""
    before: DataProfile | None = None
    for number in range(nights + 1, 0, -1):
        profile = profile_night(night_before(name, number))
        if before is not None:
            yield from ((number, each) for each in compare(profile, before) if each.verdict != PASSED)
            record_history(profile, before)
        before = profile


@pytest.mark.parametrize("corruption", FOUND_BY)
def test_a_corrupted_night_of_the_generated_shop_is_found(corruption: str) -> None:
    require_found("shop", corruption)


def test_good_nights_of_the_generated_shop_pass() -> None:
    assert list(false_verdicts("shop", 3)) == []


@pytest.mark.nights
@pytest.mark.parametrize("corruption", FOUND_BY)
@pytest.mark.parametrize("name", [name for name in SHOPS if name != "shop"])
def test_a_corrupted_night_is_found(name: str, corruption: str) -> None:
    if needs := FEATURES.get(corruption):
        assert needs in whole(name).item_features or name.endswith(" data"), "only real data may lack a feature"
        if needs not in whole(name).item_features:
            return
    require_found(name, corruption)


@pytest.mark.nights
@pytest.mark.parametrize("name", SHOPS)
def test_thirty_good_nights_have_at_most_one_false_refusal(name: str) -> None:
    found = list(false_verdicts(name, NIGHTS))
    for number, each in found:
        note({"shop": name, "night": number, "verdict": each.verdict, "by": each.name})
    note({"shop": name, "nights": NIGHTS, "not passed": len(found)})
    assert len({number for number, each in found if each.verdict == "refused"}) <= 1, found


def test_small_data_only_warn() -> None:
    live = replace(live_profile("shop"), kept=900)
    checks = compare(corrupted("shop", "feature_all_null"), live)
    assert worst_of(checks) == "warned"


def test_the_profile_holds_no_ids_and_no_values() -> None:
    text = live_profile("shop").to_json().decode()
    assert '"u0001"' not in text and "i006" not in text and "Delmar" not in text
    assert len(text) < 200_000
