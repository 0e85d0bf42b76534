"""Comparison of the data of a night with those of the live version: one `Check` for each measure.

Input: two profiles and two limits. Output: checks whose verdict is `refused` beyond the limit; measures that have
harmless causes too, such as an old newest event, only warn. A measure without enough data is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import numpy as np

from rec_ray.retrieval.profiles.checks import WARNED, Check, Verdict, at_least, at_most
from rec_ray.retrieval.profiles.data_profile import EVENTS, FIRST, DataProfile
from rec_ray.retrieval.profiles.day_profile import SECONDS_A_DAY
from rec_ray.retrieval.profiles.event_days import EventDays, compare_days
from rec_ray.retrieval.profiles.feature_profile import LEAST_ROWS, stability_index
from rec_ray.retrieval.profiles.id_sample import IdSample, changed_shares, kept_share

LEAST_EVENTS = 1000
"""Minimum number of events of the live version; below it refusals are warnings, because small data vary by chance."""
LEAST_IDS = 30
"""Minimum number of sampled ids for a share."""
SOME_CHANGED = 0.2
"""Share of values that changed in the night before, above which a change of most values is usual for the feature."""
MOST_CHANGED = 0.5
NIGHTS = 3
"""Nights with newer rows after which a view without newer rows counts as dead."""
SAME_ORDER = 0.5
"""Minimum rank correlation of the numbers of events of the same items; nights of one shop have more than 0.9."""


def compare_profiles(new: DataProfile, live: DataProfile, *, loss: float, shift: float) -> list[Check]:
    """Return the checks of a night.

    loss: share of events, users or items of the live version that may be missing, and difference of shares that is
        accepted. shift: limit of the population stability index.
    """
    checks = [
        *_sizes(new, live, loss),
        *_times(new, live, loss),
        *compare_days(EventDays.of(new, live), loss=loss, shift=shift),
        *_items_of_events(new, live, loss),
        *_sources(new, live),
        *_features("user", new, live, loss, shift),
        *_features("item", new, live, loss, shift),
    ]
    if live.kept >= LEAST_EVENTS:
        return checks
    return [Check(c.name, c.measured, c.limit, "passed" if c.verdict == "passed" else WARNED, c.said) for c in checks]


def record_history(new: DataProfile, live: DataProfile) -> None:
    """Record in a profile how its data differ from those of the live version; the next night counts that as usual."""
    found: dict[str, float] = {}
    for side, now, before, features in (
        ("user", new.users, live.users, new.user_features),
        ("item", new.items, live.items, new.item_features),
    ):
        shares = changed_shares(now, before, features)
        found |= {f"{side} {name}": round(share, 4) for name, share in shares.items()}
    new.changed = found
    later = {view for view, second in new.sources.items() if second > live.sources.get(view, second)}
    new.moved = {view: live.moved.get(view, 0) + (view in later) for view in new.sources}


def _sizes(new: DataProfile, live: DataProfile, loss: float) -> Iterator[Check]:
    for name, now, before in (
        ("events", new.kept, live.kept),
        ("users", new.users.total, live.users.total),
        ("items", new.items.total, live.items.total),
    ):
        if before:
            said = f"{now:,} {name}, {before:,} in the data of the live version"
            yield at_least(f"data.{name}", now / before, 1 - loss, said)
    for name, sample, old_sample in (("users", new.users, live.users), ("items", new.items, live.items)):
        share, sampled = kept_share(sample, old_sample)
        if sampled >= LEAST_IDS:
            said = f"{share:.0%} of the {name} of the live version are still there, of a sample of {sampled}"
            yield at_least(f"data.{name}_kept", share, 1 - loss, said)


def _times(new: DataProfile, live: DataProfile, loss: float) -> Iterator[Check]:
    said = f"the newest event is of {_text(new.newest)}, that of the live version of {_text(live.newest)}"
    yield at_least("data.newest_event", (new.newest - live.newest) / 3600, -1.0, f"{said} (in hours)")
    waited = (new.as_of - live.as_of) / 3600
    if waited >= 20:
        # A refusal would keep equally old lists, so old data only warn.
        passed = (new.newest - live.newest) / 3600
        hours = f"in {waited:.0f} hours the newest event moved by {passed:.0f}"
        yield at_least("data.new_events", passed, min(waited, 24) / 2, hours, WARNED)
    usual = _usual_day(live)
    if usual:
        share = max(0, new.future - live.future) / max(usual, LEAST_ROWS)
        what = f"{new.future:,} events lie in the future, {live.future:,} before; a day has {usual:,.0f}"
        yield at_most("data.future_events", share, loss, what)
    both, _ = live.users.shared(new.users)
    # A source that drops old rows moves the first event of old users.
    old = [key for key in both if live.users.facts[key].get(FIRST, 0) > max(new.oldest, live.oldest) + SECONDS_A_DAY]
    if len(old) >= LEAST_IDS:
        moves = [new.users.facts[key].get(FIRST, 0) - live.users.facts[key][FIRST] for key in old]
        # Events that were added later move the first event of each user by another span, which is no fault.
        span, count = Counter(move for move in moves if move).most_common(1)[0] if any(moves) else (0, 0)
        share = count / len(old)
        by = f" by {span / 3600:+.1f} hours" if span else ""
        what = f"the first event of {share:.0%} of {len(old)} users was moved{by}"
        yield at_most("data.times_moved", share, loss, what)


def _usual_day(live: DataProfile) -> float:
    return float(np.median([day.events for day in live.days.values()])) if live.days else 0.0


def _items_of_events(new: DataProfile, live: DataProfile, loss: float) -> Iterator[Check]:
    """Compare the items that have events, and their order by events: events under other item ids change both."""
    share, sampled = kept_share(new.sold, live.sold)
    if sampled >= LEAST_IDS:
        said = f"{share:.0%} of the items with events still have some, of a sample of {sampled}"
        yield at_least("data.items_with_events", share, 1 - loss, said)
    both, _ = live.sold.shared(new.sold)
    if len(both) < LEAST_IDS:
        return
    before, now = (np.array([side.sold.facts[key][EVENTS] for key in both], np.float64) for side in (live, new))
    if min(len(np.unique(before)), len(np.unique(now))) < 5:
        return
    correlation = float(np.corrcoef(_ranks(before), _ranks(now))[0, 1])
    said = f"the number of events of {len(both)} items has a rank correlation of {correlation:.2f} with that before"
    yield at_least("data.order_of_items", correlation, SAME_ORDER, said)


def _sources(new: DataProfile, live: DataProfile) -> Iterator[Check]:
    """Warn about views that got newer rows in each of the last nights and have none now."""
    if new.as_of - live.as_of < 20 * 3600:
        return
    for view, second in new.sources.items():
        if live.moved.get(view, 0) >= NIGHTS and view in live.sources:
            hours = (second - live.sources[view]) / 3600
            said = f"the newest row of {view} is of {_text(second)}, and that was so in the night before"
            moved = f"the newest row of {view} is {hours:.0f} hours later than in the night before"
            yield at_least(f"data.source.{view}", hours, 0.01, said if hours <= 0 else moved, WARNED)


def _ranks(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return the ranks of values [n], equal ones with their mean rank."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def _features(side: str, new: DataProfile, live: DataProfile, loss: float, shift: float) -> Iterator[Check]:
    now = new.user_features if side == "user" else new.item_features
    before = live.user_features if side == "user" else live.item_features
    sample, old_sample = (new.users, live.users) if side == "user" else (new.items, live.items)
    changed = changed_shares(sample, old_sample, now)
    for name, profile in now.items():
        old = before.get(name)
        if old is None or old.ordered != profile.ordered or not min(old.rows, profile.rows):
            continue
        of = f"{side} feature {name!r}"
        more = profile.null_share - old.null_share
        said = f"{profile.null_share:.0%} of the values of {of} are missing, {old.null_share:.0%} before"
        yield at_most(f"data.nulls.{side}.{name}", more, loss, said)
        yield from _nulls_of_new(side, name, sample, old_sample, old.null_share)
        index = stability_index(profile, old)
        said = f"the distribution of {of} has a stability index of {index:.2f} against that before"
        yield at_most(f"data.shift.{side}.{name}", index, shift, said)
        share = changed.get(name)
        if share is not None:
            yield _changed(side, name, share, live.changed, ordered=profile.ordered)


def _nulls_of_new(side: str, name: str, new: IdSample, live: IdSample, usual: float) -> Iterator[Check]:
    """Compare ids that are new with all before: a source that died has no value for them."""
    both, _ = new.shared(live)
    known = set(both)
    bound = max(live.facts, default=0) if len(live.facts) < live.total else 2**53
    fresh = [key for key in new.facts if key not in known and key <= bound]
    if len(fresh) >= LEAST_IDS // 3:
        share = sum(not new.facts[key].get(name, 0) for key in fresh) / len(fresh)
        said = f"{share:.0%} of {len(fresh)} new ids have no {name!r}, {usual:.0%} of all before"
        yield at_most(f"data.nulls_of_new.{side}.{name}", share - usual, MOST_CHANGED, said)


def _changed(side: str, name: str, share: float, history: Mapping[str, float], *, ordered: bool) -> Check:
    """Judge the share of ids whose value changed by that of the night before; without one, numbers only warn."""
    usual = history.get(f"{side} {name}")
    limit = MOST_CHANGED if usual is None or usual < SOME_CHANGED else min(1.0, usual + MOST_CHANGED)
    said = f"{share:.0%} of the ids have another {name!r} than before"
    if usual is not None and usual >= SOME_CHANGED and share == 0:
        said = f"no id has another {name!r} than before, although {usual:.0%} had in the night before"
        return Check(f"data.changed.{side}.{name}", 0.0, 0.0, WARNED, said)
    worst: Verdict = "warned" if usual is None and ordered else "refused"
    return at_most(f"data.changed.{side}.{name}", share, limit, said, worst)


def _text(second: int) -> str:
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%d %H:%M}"
