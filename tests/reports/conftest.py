"""Facts of a made-up version with everything a report can show, and with names that try to be markup."""

import math

import numpy as np
import pytest

from rec_ray.contracts import Distributions, EpochResult, Evaluation, EvaluationFacts, Example, Segment

EVIL = "<script>alert(1)</script>"
METHODS = {
    "model": 0.31,
    "live": 0.27,
    "popularity": 0.08,
    "recent_popularity": 0.09,
    "item_knn": 0.2,
    "item_transitions": 0.17,
}


def metrics_of(value):
    names = {f"recall@{k}": value * math.log1p(k) / math.log1p(10) for k in (5, 10, 20, 50, 100)}
    names |= {f"ndcg@{k}": 0.6 * recall for k, recall in zip((5, 10, 20), list(names.values())[:3], strict=True)}
    return names | {"mrr": value / 2, "coverage@10": 0.5 + value, "novelty@10": 8.0 + value}


def around(values, width=0.012):
    return {name: (value - width, value + width) for name, value in values.items()}


@pytest.fixture(scope="session")
def evaluation():
    metrics = {method: metrics_of(value) for method, value in METHODS.items()}
    model = metrics["model"]
    factors = {"users without history": 0.4, "users with 1 to 4 events": 0.8, "users with 5 events or more": 1.1}
    segments = {
        name: Segment(
            name,
            1000 + 100 * place,
            {
                method: {"recall@10": value * factor, "ndcg@10": value / 2, "mrr": 0.1}
                for method, value in METHODS.items()
            },
            {method: around({"recall@10": value * factor}) for method, value in METHODS.items()},
        )
        for place, (name, factor) in enumerate([*factors.items(), ("items never learned from", 0.3)])
    }
    generator = np.random.default_rng(0)
    examples = tuple(
        Example(
            user_id=f"user {number} {EVIL if number == 0 else ''}",
            segment="users with 1 to 4 events",
            history=tuple(f"i{n}" for n in generator.integers(0, 300, 7)),
            recommended=tuple(f"i{n}" for n in generator.permutation(300)[:10]),
            scores=tuple(np.linspace(0.9, 0.4, 10).tolist()),
            taken=("i0", "i1", "i2"),
        )
        for number in range(5)
    )
    places = np.unique(np.geomspace(1, 1000, 100).astype(int)).tolist()
    return Evaluation(
        metrics=metrics,
        users=1834,
        targets=4321,
        intervals={method: around(own) for method, own in metrics.items()},
        facts=EvaluationFacts(
            live_version="6",
            targets=4321,
            periods={"train": (41000, 1_700_000_000, 1_720_000_000), "test": (5000, 1_721_000_000, 1_724_000_000)},
        ),
        differences={
            method: around({name: model[name] - value for name, value in own.items()})
            for method, own in metrics.items()
            if method != "model"
        },
        segments=segments,
        examples=examples,
        distributions=Distributions(
            scores={
                "recommended": generator.normal(0.8, 0.08, 900).tolist(),
                "taken": generator.normal(0.5, 0.2, 900).tolist(),
                "random": generator.normal(0.0, 0.25, 900).tolist(),
            },
            learned=[[place, int(2000 / place**0.8)] for place in places],
            recommended=[[place, int(900 / place**0.5)] for place in places],
        ),
    )


@pytest.fixture(scope="session")
def facts(evaluation):
    from rec_ray.reports.page.facts import FeatureRow, ItemMap, ReportFacts

    generator = np.random.default_rng(1)
    ids = [f"i{number}" for number in range(300)]
    kinds = ["Kitchen", "Garden & Patio", "Books", EVIL, "Toys", "Shoes", "Lamps", "Music", "Sport", "Paper", "$x$"]
    category = [kinds[number % len(kinds)] for number in range(300)]
    middle = generator.normal(0, 3, (len(kinds), 2))
    places = np.array([middle[number % len(kinds)] for number in range(300)]) + generator.normal(0, 0.8, (300, 2))
    epochs = tuple(
        EpochResult(
            epoch=number,
            loss=3 + 4 / number,
            validation_ndcg=0.2 - 0.15 / number - 0.002 * number,
            seconds=2.0,
            examples_per_second=1000.0,
        )
        for number in range(1, 13)
    )
    return ReportFacts(
        version="7",
        run_id="20260101-120000-abcdef",
        created_at="2026-01-01T12:00:00+00:00",
        data_to="2026-01-01T11:59:00+00:00",
        gate="passed",
        evaluation=evaluation,
        epochs=epochs,
        best_epoch=8,
        features=(
            FeatureRow("user", "age", "numeric", "mean 41.2, standard deviation 12"),
            FeatureRow("item", "category", "category_path", f"11 values; most often {EVIL}"),
        ),
        item_map=ItemMap(
            item_ids=ids,
            x=places[:, 0].tolist(),
            y=places[:, 1].tolist(),
            total=1000,
            said="principal components, 31 % of the variance",
        ),
        names={item_id: f"{kinds[number % len(kinds)]} no. {number}" for number, item_id in enumerate(ids)}
        | {"i0": EVIL, "i1": "a $\\frac$ & <b>bold</b> name\x07"},
        categories=dict(zip(ids, category, strict=True)),
        settings={"storage": {"url": "store", "secret_key": "**********"}, "train": {"epochs": 12}},
        packages={"rec_ray": "0.1.0", "torch": "2.13.0"},
        seconds={"start": 4.1, "load_features": 8.3, "training_data": 3.2, "train": 61.0, "evaluate": 7.7},
        counts={"interactions read": 50_000, "users": 2000},
    )
