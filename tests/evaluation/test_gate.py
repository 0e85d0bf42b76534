"""The gate says its figures, beside popularity and beside the live version, and refuses only when it is told to."""

import dataclasses

import pytest

from rec_ray.config import EvaluationSettings, Settings
from rec_ray.contracts import Evaluation, EvaluationFacts
from rec_ray.errors import GateError
from rec_ray.evaluation.gate import check_gate, check_quality, find_loss, suggest_changes


def compared(model, popularity, live=None):
    metrics = {"model": {"ndcg@10": model}, "popularity": {"ndcg@10": popularity}}
    facts = EvaluationFacts()
    if live is not None:
        metrics["live"] = {"ndcg@10": live}
        facts = EvaluationFacts(live_version="7")
    return Evaluation(metrics, users=1234, targets=1234, facts=facts)


def test_a_model_within_the_margin_of_popularity_is_not_refused_and_passes_only_if_it_is_better():
    for gate in ("warn", "refuse"):
        assert check_gate(compared(0.1, 0.1), EvaluationSettings(gate=gate)) == "behind"
        assert check_gate(compared(0.091, 0.1), EvaluationSettings(gate=gate, gate_margin=0.1)) == "behind"
        assert check_gate(compared(0.11, 0.1), EvaluationSettings(gate=gate)) == "passed"
    assert check_gate(compared(0.0, 0.1), EvaluationSettings(gate="off")) == "off"
    assert check_gate(Evaluation({}, 0, 0), EvaluationSettings(gate="refuse")) == "off", "nothing to compare by"


def test_the_gate_warns_with_figures(caplog):
    assert check_gate(compared(0.0891, 0.1), EvaluationSettings(gate="warn", gate_margin=0.1)) == "warned"
    (said,) = caplog.messages
    assert "NDCG@10 is 0.0891, below popularity's 0.1000 and the margin 10%, over 1,234 users" in said


def test_the_gate_refuses_with_figures_and_exit_code_5():
    with pytest.raises(GateError, match=r"NDCG@10 is 0\.0999, below popularity's 0\.1000, over 1,234 users") as caught:
        check_gate(compared(0.0999, 0.1), EvaluationSettings(gate="refuse"))
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    ("model", "margin", "refused"),
    [(0.3, 0.0, False), (0.2999, 0.0, True), (0.286, 0.05, False), (0.284, 0.05, True)],
)
def test_the_live_version_has_a_margin_of_its_own(model, margin, refused):
    settings = EvaluationSettings(gate="refuse", gate_live_margin=margin)
    evaluation = compared(model, 0.1, live=0.3)
    if not refused:
        assert check_gate(evaluation, settings) == "passed"
        return
    with pytest.raises(GateError, match=rf"NDCG@10 is {model:.4f}, below that of the live version 7 0\.3000"):
        check_gate(evaluation, settings)


def test_both_reasons_are_named():
    with pytest.raises(GateError) as caught:
        check_gate(compared(0.05, 0.1, live=0.3), EvaluationSettings(gate="refuse"))
    assert "below popularity's 0.1000 and the model's NDCG@10 is 0.0500, below that of the live version" in str(
        caught.value
    )


def test_a_model_that_learned_nothing_is_refused_or_warned_about_whatever_its_figures(caplog):
    facts = EvaluationFacts(nothing_learned="the model learned nothing beyond popularity (loss 5.0)")
    evaluation = dataclasses.replace(compared(0.2, 0.1), facts=facts)
    assert check_gate(evaluation, EvaluationSettings(gate="warn")) == "warned"
    assert "learned nothing beyond popularity" in caplog.messages[0]
    with pytest.raises(GateError, match="learned nothing beyond popularity"):
        check_gate(evaluation, EvaluationSettings(gate="refuse"))


@pytest.mark.parametrize(
    ("high", "margin", "verdict"),
    [(-0.001, 0.0, "warned"), (0.001, 0.0, "passed"), (-0.01, 0.1, "passed"), (-0.03, 0.1, "warned")],
)
def test_the_best_counting_method_must_not_be_surely_better(high, margin, verdict):
    metrics = {"model": {"ndcg@10": 0.2}, "popularity": {"ndcg@10": 0.1}}
    metrics |= {"recent_popularity": {"ndcg@10": 0.15}, "item_knn": {"ndcg@10": 0.21}}
    differences = {"item_knn": {"ndcg@10": (-0.05, high)}, "recent_popularity": {"ndcg@10": (0.01, 0.09)}}
    evaluation = Evaluation(metrics, users=1234, targets=1234, differences=differences)
    settings = EvaluationSettings(gate="refuse", gate_margin=margin)
    found = {each.name: each for each in check_quality(evaluation, settings)}
    assert found["quality.counting"].verdict == verdict
    assert "0.2100 of item-kNN, the best counting method" in found["quality.counting"].said
    assert found["quality.popularity"].verdict == "passed"
    assert check_gate(evaluation, settings) == "behind", "published all the same"


def test_item_vectors_that_are_nearly_alike_warn():
    facts = EvaluationFacts(known_items=100, mean_cosine=0.97, effective_rank=1.4)
    evaluation = dataclasses.replace(compared(0.2, 0.1), facts=facts)
    found = {each.name: each.verdict for each in check_quality(evaluation, EvaluationSettings(gate="refuse"))}
    assert (found["geometry.item_cosine"], found["geometry.item_rank"]) == ("warned", "warned")
    assert found["learning.learned"] == "passed"
    assert check_gate(evaluation, EvaluationSettings(gate="refuse")) == "warned"


def test_a_model_behind_the_best_counting_baseline_is_named_with_what_to_try():
    evaluation = compared(0.2, 0.1)
    metrics = {**evaluation.metrics, "item_knn": {"ndcg@10": 0.3}, "random_walk": {"ndcg@10": 0.25}}
    behind = dataclasses.replace(evaluation, metrics=metrics, differences={"item_knn": {"ndcg@10": (-0.2, -0.05)}})
    assert check_gate(behind, EvaluationSettings(gate="refuse")) == "behind"
    said = "the model's NDCG@10 0.2000 does not beat the 0.3000 of item-kNN, which only counts"
    assert find_loss(behind) == said
    by_chance = dataclasses.replace(behind, differences={"item_knn": {"ndcg@10": (-0.2, 0.05)}})
    assert find_loss(by_chance) == f"{said}, which may be chance"
    assert find_loss(evaluation) is None and find_loss(Evaluation({}, 0, 0)) is None
    tried = suggest_changes(Settings(train={"epochs": 3, "learning_rate": 0.003}, model={"history": "none"}))
    assert tried[:3] == [
        "declare features of users and items in section features",
        "--set model.history=auto",
        "--set train.epochs=auto",
    ]
    assert "--set train.learning_rate=0.001, or 0.009" in tried
