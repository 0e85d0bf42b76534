"""Quality gate: compares a model with the counting methods and the live version, and refuses one that learned nothing.

Input: an `Evaluation` and the settings. Output: checks and a verdict, or a `GateError` with the figures. The module
reads metrics and facts only.
"""

from __future__ import annotations

import math

from rec_ray.config import EvaluationSettings
from rec_ray.contracts import KNN, LIVE, MODEL, POPULARITY, RANDOM_WALK, RECENT, TRANSITIONS, Evaluation
from rec_ray.errors import GateError
from rec_ray.logs import LOGGER
from rec_ray.retrieval.learning.attempts import COLLAPSED_COSINE, FEW_ITEMS
from rec_ray.retrieval.profiles.checks import PASSED, REFUSED, WARNED, Check, Verdict, at_least, at_most, decide

GATE_METRIC = "ndcg@10"
COUNTING = (RECENT, KNN, TRANSITIONS, RANDOM_WALK)
"""Counting methods beside popularity; the best of them is compared."""
LEAST_RANK = 2.0
"""Effective rank of the item vectors below which all items lie on about one line."""


def check_gate(evaluation: Evaluation, settings: EvaluationSettings) -> str:
    """Compare the model with counting and with the live version, and return `passed`, `warned` or `off`.

    Without a held-out event there is no comparison, and the verdict is `off`.

    Raises:
        GateError: the model is worse by more than the margin and `evaluation.gate` is `refuse`.
    """
    if settings.gate == "off" or MODEL not in evaluation.metrics:
        return "off"
    reasons = find_reasons(evaluation, settings)
    if not reasons:
        return "passed"
    figures = f"{' and '.join(reasons)}, over {evaluation.users:,} users"
    if settings.gate == "refuse" and any(each.verdict == REFUSED for each in check_quality(evaluation, settings)):
        raise GateError(f"{figures}: the model is stored and not published (evaluation.gate: refuse)")
    LOGGER.warning("%s; it is published all the same (evaluation.gate: %s)", figures, settings.gate)
    return "warned"


def find_reasons(evaluation: Evaluation, settings: EvaluationSettings) -> list[str]:
    """Return a phrase with the figures for each check that does not pass, a collapsed training first."""
    return [each.said for each in check_quality(evaluation, settings) if each.verdict != PASSED]


def check_quality(evaluation: Evaluation, settings: EvaluationSettings) -> list[Check]:
    """Return the checks of training, item vectors and ranking; none without a held-out event or with the gate off."""
    if settings.gate == "off" or MODEL not in evaluation.metrics:
        return []
    live = evaluation.facts.live_version
    whose_live = f"that of the live version{f' {live}' if live else ''}"
    checks = [
        *_learning(evaluation),
        *_against(evaluation, POPULARITY, "popularity's", settings.gate_margin),
        *_against_counting(evaluation, settings.gate_margin),
        *_against(evaluation, LIVE, whose_live, settings.gate_live_margin),
    ]
    return decide(checks, settings.gate)


def _learning(evaluation: Evaluation) -> list[Check]:
    facts = evaluation.facts
    nothing = facts.nothing_learned
    said = str(nothing) if nothing else "the training learned more than popularity"
    checks = [Check("learning.learned", None, None, REFUSED if nothing else PASSED, said)]
    if facts.mean_cosine is not None and facts.known_items >= FEW_ITEMS:
        said = f"the mean cosine of two item vectors is {facts.mean_cosine:.3f}; near 1 all items are alike"
        # A collapse is refused by `learned`, after a second attempt; here the figure itself is recorded.
        checks.append(at_most("geometry.item_cosine", facts.mean_cosine, COLLAPSED_COSINE, said, WARNED))
    if facts.effective_rank is not None and facts.known_items >= FEW_ITEMS:
        said = f"the item vectors have an effective rank of {facts.effective_rank:.1f}; near 1 they lie on one line"
        checks.append(at_least("geometry.item_rank", facts.effective_rank, LEAST_RANK, said, WARNED))
    return checks


def _against(evaluation: Evaluation, method: str, whose: str, margin: float) -> list[Check]:
    if method not in evaluation.metrics:
        return []
    model, other = (evaluation.metrics[name][GATE_METRIC] for name in (MODEL, method))
    limit = other * (1 - margin)
    below = f", below {whose} {other:.4f}{f' and the margin {margin:.0%}' if margin else ''}"
    fine = f", {whose} {other:.4f}"
    passes = model >= limit
    said = f"the model's NDCG@10 is {model:.4f}{fine if passes else below}"
    return [Check(f"quality.{method}", round(model, 4), round(limit, 4), PASSED if passes else REFUSED, said)]


def _against_counting(evaluation: Evaluation, margin: float) -> list[Check]:
    """Compare with the best counting method: worse if the paired interval excludes a difference within the margin."""
    counted = {name: evaluation.metrics[name][GATE_METRIC] for name in COUNTING if name in evaluation.metrics}
    if not counted:
        return []
    best = max(counted, key=lambda name: counted[name])
    high = evaluation.differences.get(best, {}).get(GATE_METRIC, (math.nan, math.nan))[1]
    if math.isnan(high):
        return []
    limit, model = -margin * counted[best], evaluation.metrics[MODEL][GATE_METRIC]
    verdict: Verdict = REFUSED if high < limit else PASSED
    relation = "below" if verdict == REFUSED else "not surely below" if model < counted[best] else "above"
    figures = f"{relation} {counted[best]:.4f} of the best counting method, {best.replace('_', ' ')}"
    said = f"the model's NDCG@10 is {model:.4f}, {figures}"
    return [Check("quality.counting", round(high, 4), round(limit, 4), verdict, said)]
