"""Sentences are honest: better only where it is more than chance, worse where it is worse."""

from dataclasses import replace

import pytest

from rec_ray.contracts import Evaluation, EvaluationFacts
from rec_ray.reports.comparison import compare_model, name_method


def figures(model, popularity, difference=None, interval=None, **others):
    values = {"model": model, "popularity": popularity} | {name: value for name, (value, _) in others.items()}
    differences = {"popularity": difference} if difference else {}
    differences |= {name: own for name, (_, own) in others.items()}
    return Evaluation(
        {name: {"recall@10": value} for name, value in values.items()},
        users=1,
        targets=1,
        intervals={"model": {"recall@10": interval}} if interval else {},
        differences={name: {"recall@10": own} for name, own in differences.items()},
        facts=EvaluationFacts(live_version="12"),
    )


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((0.3, 0.1, (0.18, 0.22)), "The model's Recall@10 is 3.0 times that of popularity."),
        ((0.3, 0.1), "The model's Recall@10 is 3.0 times that of popularity."),
        ((0.3, 0.0), "The model's Recall@10 is 0.3000, and that of popularity is 0."),
        (
            (0.05, 0.06),
            "The model does not beat popularity (Recall@10 0.0500 against 0.0600): "
            "these data contain little that distinguishes users.",
        ),
        (
            (0.05, 0.05),
            "The model does not beat popularity (Recall@10 0.0500 against 0.0500): "
            "these data contain little that distinguishes users.",
        ),
        (
            (0.06, 0.05, (-0.005, 0.025)),
            "The model does not beat popularity by more than chance "
            "(Recall@10 0.0600 against 0.0500, 95 % interval of the difference -0.0050 to +0.0250).",
        ),
        # Without differences, as in what older versions stored, the model's own interval decides.
        (
            (0.06, 0.05, None, (0.045, 0.075)),
            "The model does not beat popularity by more than chance (Recall@10 0.0600 against 0.0500).",
        ),
        ((0.06, 0.05, None, (0.055, 0.065)), "The model's Recall@10 is 1.2 times that of popularity."),
    ],
)
def test_beside_popularity(given, sentence):
    assert compare_model(figures(*given)) == [sentence]


@pytest.mark.parametrize(
    ("live", "difference", "sentence"),
    [
        (0.2, (0.08, 0.12), "The model is better than the live version 12 (Recall@10 0.3000 against 0.2000"),
        (0.4, (-0.12, -0.08), "The model is worse than the live version 12 (Recall@10 0.3000 against 0.4000"),
        (
            0.29,
            (-0.01, 0.03),
            "The model does not differ from the live version 12 by more than chance (Recall@10 0.3000 against 0.2900",
        ),
    ],
)
def test_beside_the_live_version(live, difference, sentence):
    beside = compare_model(figures(0.3, 0.1, (0.18, 0.22), live=(live, difference)))[1]
    assert beside.startswith(sentence)


def test_the_best_of_what_counts_is_named_where_it_is_better_than_popularity():
    others = {"item_knn": (0.25, (0.02, 0.08)), "item_transitions": (0.35, (-0.08, -0.02))}
    _, beside = compare_model(figures(0.3, 0.1, (0.18, 0.22), **others))
    assert beside.startswith("The model is worse than item transitions (Recall@10 0.3000 against 0.3500")
    assert len(compare_model(figures(0.3, 0.1, (0.18, 0.22), item_knn=(0.05, (0.2, 0.3))))) == 1


def test_without_any_interval_a_difference_is_not_called_better():
    values = {"model": 0.3, "popularity": 0.1, "item_knn": 0.29}
    evaluation = Evaluation({name: {"recall@10": value} for name, value in values.items()}, 1, 1)
    assert compare_model(evaluation)[1] == (
        "The model's Recall@10 is higher than that of item-kNN (Recall@10 0.3000 against 0.2900); "
        "without intervals, this may be chance."
    )


def test_a_method_that_has_no_name_yet_is_called_by_its_key():
    assert (name_method("item_knn"), name_method("re_ranked")) == ("item-kNN", "re ranked")


def test_a_training_that_learned_nothing_is_said_first():
    facts = EvaluationFacts(nothing_learned="the model learned nothing beyond popularity (loss 5.0)")
    evaluation = replace(figures(0.3, 0.1, (0.18, 0.22)), facts=facts)
    assert compare_model(evaluation)[0] == "The model learned nothing beyond popularity (loss 5.0)."
