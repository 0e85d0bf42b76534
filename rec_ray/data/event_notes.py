"""Suspicious findings about the events: types that sound negative, values nearly all negative, one user's share.

Input: counts of events. Output: one sentence for each finding, with the setting that changes it; a run logs them, and
`doctor` and the report show them. This module reads no rows and changes no setting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rec_ray.config import InteractionSettings
from rec_ray.errors import list_names
from rec_ray.logs import LOGGER
from rec_ray.retrieval.features.dislikes import DISLIKED

NEGATIVE_WORDS = ("negative", "dislike", "remove", "return", "refund", "cancel", "unsubscri", "skip", "hide")
"""Parts of the names of event types that usually mean the opposite of interest."""
GREAT_SHARE, MANY_EVENTS = 0.05, 200
"""Minimum share of all events, and minimum number of events, from which the user with the most events is reported."""


@dataclass(frozen=True)
class EventFacts:
    """Counts of the events, or of a sample of them.

    types: event type -> events. values, disliked: events with a value, and those with a negative one.
    largest_user: id of the user with the most events, and their number.
    """

    events: int
    types: Mapping[str, int] = field(default_factory=dict)
    values: int = 0
    disliked: int = 0
    largest_user: tuple[str, int] = ("", 0)


def sounds_negative(event_type: str) -> bool:
    """Return whether the name of an event type usually means the opposite of interest."""
    return any(word in event_type.lower() for word in NEGATIVE_WORDS)


def log_events(
    facts: Mapping[str, int], counts: EventFacts, meaning: InteractionSettings, events_per_user: int | None
) -> list[str]:
    """Log each decision about events with its count, and each suspicious finding; return the findings.

    facts: from `label_events`. events_per_user: newest events of a user that an epoch learns from; None for all.
    """
    said = {
        "unknown_items": "interactions with items that are not in the catalogue are left out",
        "corrected": "interactions are left out, because a row of the same keys and time was created later",
        "duplicates": "interactions that repeat another one in every column are counted once",
        "bad_values": "ratings that are not finite count as missing",
    }
    for name, what in said.items():
        if facts.get(name):
            LOGGER.warning("%s %s", f"{facts[name]:,}", what)
    if facts.get("disliked"):
        LOGGER.info("%s interactions are negatives: their value is %s", f"{facts['disliked']:,}", _below(meaning))
    if facts.get("beyond_events"):
        LOGGER.info(
            "%s interactions of %s users are history only: an epoch learns from the newest %s of a user "
            "(features.interaction.events_per_user)",
            f"{facts['beyond_events']:,}",
            f"{facts['beyond_users']:,}",
            f"{events_per_user:,}",
        )
    notes = event_notes(counts, meaning, events_per_user)
    for note in notes:
        LOGGER.warning("%s", note)
    return notes


def event_notes(facts: EventFacts, meaning: InteractionSettings, events_per_user: int | None) -> list[str]:
    """Return a sentence for each suspicious finding."""
    return [
        *_type_notes(facts.types, meaning),
        *_value_notes(facts, meaning),
        *_share_notes(facts, events_per_user),
    ]


def _type_notes(types: Mapping[str, int], meaning: InteractionSettings) -> list[str]:
    declared: Sequence[str] = meaning.negative_types
    own = [name for name in sorted(types) if not name.endswith(DISLIKED)]
    suspicious = {name: types[name] for name in own if name not in declared and sounds_negative(name)}
    notes = []
    if suspicious:
        said = ", ".join(f"{name!r} ({count:,})" for name, count in suspicious.items())
        notes.append(
            f"events of the type {said} are learned as positives; if they are negative, set "
            f"features.interaction.negative_types: [{', '.join([*declared, *suspicious])}]"
        )
    absent = [name for name in declared if types and name not in types]
    if absent:
        notes.append(
            f"features.interaction.negative_types names {list_names(absent)}, which no event has; the types are "
            f"{list_names(own)}"
        )
    return notes


def _value_notes(facts: EventFacts, meaning: InteractionSettings) -> list[str]:
    if facts.disliked * 2 <= facts.values:
        return []
    return [
        f"{facts.disliked:,} of {facts.values:,} values of {meaning.value_field!r} are {_below(meaning)} and count as "
        "negative; "
        "if such a value stands for a missing one, set features.interaction.value_field: null, else lower "
        "features.interaction.min_positive_value"
    ]


def _below(meaning: InteractionSettings) -> str:
    least = meaning.min_positive_value
    return "at or below 0" if least is None else f"below {least:g}"


def _share_notes(facts: EventFacts, events_per_user: int | None) -> list[str]:
    user, count = facts.largest_user
    if count < max(MANY_EVENTS, GREAT_SHARE * facts.events):
        return []
    learned = "all" if events_per_user is None or count <= events_per_user else f"the newest {events_per_user:,}"
    return [
        f"user {user!r} has {count:,} of {facts.events:,} events ({count / facts.events:.0%}); training learns from "
        f"{learned} (features.interaction.events_per_user). If it is a crawler or a shared account, set "
        f"features.interaction.exclude_users: [{user!r}]"
    ]
