"""Quality gate: compares a model with popularity and with the live version, and refuses one that learned nothing.

Input: an `Evaluation` and the settings. Output: a verdict, or a `GateError` with the figures. The module reads metrics
and facts only.
"""

from __future__ import annotations

from rec_ray.config import EvaluationSettings
from rec_ray.contracts import LIVE, MODEL, POPULARITY, Evaluation
from rec_ray.errors import GateError
from rec_ray.logs import LOGGER

GATE_METRIC = "ndcg@10"


def check_gate(evaluation: Evaluation, settings: EvaluationSettings) -> str:
    """Compare the model with popularity and with the live version, and return `passed`, `warned` or `off`.

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
    if settings.gate == "refuse":
        raise GateError(f"{figures}: the model is stored and not published (evaluation.gate: refuse)")
    LOGGER.warning("%s; it is published all the same (evaluation.gate: warn)", figures)
    return "warned"


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
