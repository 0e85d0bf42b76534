"""Quality gate: compares a model with the counting methods and the live version, and refuses one that learned nothing.

Input: an `Evaluation` and the settings. Output: checks and a verdict, or a `GateError` with the figures; and, for a
model that is behind a counting baseline, the figures and the settings to try. The module reads metrics and facts only.
"""

from __future__ import annotations

import math

from rec_ray.config import EvaluationSettings, Settings
from rec_ray.contracts import KNN, LIVE, MODEL, POPULARITY, RANDOM_WALK, RECENT, TRANSITIONS, Evaluation
from rec_ray.errors import GateError
from rec_ray.logs import LOGGER
from rec_ray.retrieval.learning.attempts import COLLAPSED_COSINE, FEW_ITEMS
from rec_ray.retrieval.profiles.checks import PASSED, REFUSED, WARNED, Check, Verdict, at_least, at_most, decide

GATE_METRIC = "ndcg@10"
COUNTING = {
    POPULARITY: "popularity",
    RECENT: "recent popularity",
    KNN: "item-kNN",
    RANDOM_WALK: "random walk",
    TRANSITIONS: "item transitions",
}
"""Baselines that count and learn nothing -> their names."""
BEHIND, OFF = "behind", "off"
"""Further verdicts. behind: the gate has no objection, but the model does not beat every counting baseline."""
AGAINST_COUNTING = "quality.counting"
LEAST_RANK = 2.0
"""Effective rank of the item vectors below which all items lie on about one line."""


def check_gate(evaluation: Evaluation, settings: EvaluationSettings) -> str:
    """Compare the model with popularity and with the live version, and return the verdict.

    Without a held-out event there is no comparison, and the verdict is `off`. A model that is behind a counting
    baseline is `behind` instead of `passed`, and published all the same.

    Raises:
        GateError: the model is worse by more than the margin and `evaluation.gate` is `refuse`.
    """
    if settings.gate == "off" or MODEL not in evaluation.metrics:
        return OFF
    reasons = find_reasons(evaluation, settings)
    if not reasons:
        return BEHIND if find_loss(evaluation) else PASSED
    figures = f"{' and '.join(reasons)}, over {evaluation.users:,} users"
    if settings.gate == "refuse" and any(each.verdict == REFUSED for each in check_quality(evaluation, settings)):
        raise GateError(f"{figures}: the model is stored and not published (evaluation.gate: refuse)")
    LOGGER.warning("%s; it is published all the same (evaluation.gate: %s)", figures, settings.gate)
    return WARNED


def find_loss(evaluation: Evaluation) -> str | None:
    """Return a phrase with the best counting baseline that the model does not beat by NDCG@10; None if it beats all."""
    metrics = evaluation.metrics
    if MODEL not in metrics:
        return None
    best = max(
        (name for name in COUNTING if name in metrics), key=lambda name: metrics[name][GATE_METRIC], default=None
    )
    if best is None or metrics[MODEL][GATE_METRIC] > metrics[best][GATE_METRIC]:
        return None
    difference = evaluation.differences.get(best, {}).get(GATE_METRIC)
    chance = ", which may be chance" if difference is not None and difference[0] <= 0 <= difference[1] else ""
    return (
        f"the model's NDCG@10 {metrics[MODEL][GATE_METRIC]:.4f} does not beat the {metrics[best][GATE_METRIC]:.4f} of "
        f"{COUNTING[best]}, which only counts{chance}"
    )


def advise(evaluation: Evaluation, settings: Settings) -> list[str]:
    """Return sentences on a model that does not beat a counting baseline: the figures, then the settings to try."""
    loss = find_loss(evaluation)
    if loss is None:
        return []
    return [f"{loss[0].upper()}{loss[1:]}.", f"Try: {'; '.join(suggest_changes(settings))}."]


def suggest_changes(settings: Settings) -> list[str]:
    """Return the settings to try after a model did not beat a counting baseline, the most promising first."""
    train, model, features = settings.train, settings.model, settings.features
    changes = [] if features.user or features.item else ["declare features of users and items in section features"]
    if model.history in ("none", "mean"):
        changes.append("--set model.history=auto")
    if train.epochs != "auto":
        changes.append("--set train.epochs=auto")
    if train.refit == "off":
        changes.append("--set train.refit=full")
    rate = train.learning_rate
    return [*changes, f"--set train.learning_rate={rate / 3:.2g}, or {rate * 3:.2g}", "more events, or a longer period"]


def find_reasons(evaluation: Evaluation, settings: EvaluationSettings) -> list[str]:
    """Return a phrase with the figures for each check that does not pass, a collapsed training first.

    Counting baselines beside popularity are left to `find_loss`.
    """
    failed = [each for each in check_quality(evaluation, settings) if each.verdict != PASSED]
    return [each.said for each in failed if each.name != AGAINST_COUNTING]


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
    """Compare with the best counting method: worse if the paired interval excludes a difference within the margin.

    That only warns, because `find_loss` names it with the settings to try, and the model may serve better all the same.
    """
    counted = {name: evaluation.metrics[name][GATE_METRIC] for name in COUNTING if name in evaluation.metrics}
    if not counted:
        return []
    best = max(counted, key=lambda name: counted[name])
    high = evaluation.differences.get(best, {}).get(GATE_METRIC, (math.nan, math.nan))[1]
    if math.isnan(high):
        return []
    limit, model = -margin * counted[best], evaluation.metrics[MODEL][GATE_METRIC]
    verdict: Verdict = WARNED if high < limit else PASSED
    relation = "below" if verdict == WARNED else "not surely below" if model < counted[best] else "above"
    figures = f"{relation} {counted[best]:.4f} of {COUNTING[best]}, the best counting method"
    said = f"the model's NDCG@10 is {model:.4f}, {figures}"
    return [Check(AGAINST_COUNTING, round(high, 4), round(limit, 4), verdict, said)]
