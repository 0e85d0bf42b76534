"""Result of one named check: measured value, limit and verdict.

Every part of the gate returns a list of `Check`; `decide` applies the setting `refuse`, `warn` or `off` to it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["passed", "warned", "refused"]
PASSED: Verdict = "passed"
WARNED: Verdict = "warned"
REFUSED: Verdict = "refused"


@dataclass(frozen=True)
class Check:
    """One check of a night.

    name: group and measure, such as `data.users_kept`. measured, limit: None if there is no number. said: the finding
    in one sentence.
    """

    name: str
    measured: float | None
    limit: float | None
    verdict: Verdict
    said: str


def at_least(name: str, measured: float, limit: float, said: str, worst: Verdict = REFUSED) -> Check:
    """Return a check that passes if the measured value is `limit` or more; `worst` is its verdict otherwise."""
    return Check(name, _rounded(measured), _rounded(limit), PASSED if measured >= limit else worst, said)


def at_most(name: str, measured: float, limit: float, said: str, worst: Verdict = REFUSED) -> Check:
    """Return a check that passes if the measured value is `limit` or less; NaN does not pass."""
    return Check(name, _rounded(measured), _rounded(limit), PASSED if measured <= limit else worst, said)


def decide(checks: Iterable[Check], mode: Literal["refuse", "warn", "off"]) -> list[Check]:
    """Return the checks with the verdicts of a mode: `warn` turns refusals into warnings, `off` leaves none."""
    if mode == "off":
        return []
    if mode == "refuse":
        return list(checks)
    return [dataclasses.replace(each, verdict=WARNED) if each.verdict == REFUSED else each for each in checks]


def worst_of(checks: Iterable[Check]) -> Verdict:
    """Return the most severe verdict; `passed` without any check."""
    verdicts = {each.verdict for each in checks}
    return REFUSED if REFUSED in verdicts else WARNED if WARNED in verdicts else PASSED


def _rounded(value: float) -> float:
    return round(value, 4) if math.isfinite(value) else value
