"""Quality gate: compares a model with popularity and with the live version, and refuses one that learned nothing.

Input: an `Evaluation` and the settings. Output: a verdict, or a `GateError` with the figures; and, for a model that is
behind a counting baseline, the figures and the settings to try. The module reads metrics and facts only.
"""

from __future__ import annotations

from rec_ray.config import EvaluationSettings, Settings
from rec_ray.contracts import KNN, LIVE, MODEL, POPULARITY, RANDOM_WALK, RECENT, TRANSITIONS, Evaluation
from rec_ray.errors import GateError
from rec_ray.logs import LOGGER

GATE_METRIC = "ndcg@10"
COUNTING = {
    POPULARITY: "popularity",
    RECENT: "recent popularity",
    KNN: "item-kNN",
    RANDOM_WALK: "random walk",
    TRANSITIONS: "item transitions",
}
"""Baselines that count and learn nothing -> their names."""
PASSED, BEHIND, WARNED, OFF = "passed", "behind", "warned", "off"
"""Verdicts. behind: the gate has no objection, but the model does not beat every counting baseline."""


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
    if settings.gate == "refuse":
        raise GateError(f"{figures}: the model is stored and not published (evaluation.gate: refuse)")
    LOGGER.warning("%s; it is published all the same (evaluation.gate: warn)", figures)
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
    """Return a phrase with the figures for each comparison that the model fails, a collapsed training first."""
    if settings.gate == "off" or MODEL not in evaluation.metrics:
        return []
    model = evaluation.metrics[MODEL][GATE_METRIC]
    margins = {POPULARITY: ("popularity's", settings.gate_margin)}
    live = evaluation.facts.live_version
    margins[LIVE] = (f"that of the live version{f' {live}' if live else ''}", settings.gate_live_margin)
    nothing = evaluation.facts.nothing_learned
    reasons = [str(nothing)] if nothing else []
    for method, (whose, margin) in margins.items():
        if method not in evaluation.metrics:
            continue
        other = evaluation.metrics[method][GATE_METRIC]
        if model < other * (1 - margin):
            beyond = f" and the margin {margin:.0%}" if margin else ""
            reasons.append(f"the model's NDCG@10 is {model:.4f}, below {whose} {other:.4f}{beyond}")
    return reasons
