"""Metrics are what a loop over users and items gives, baselines what was counted, and the gate says its figures."""

import copy
import dataclasses
import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from rec_ray.config import CandidateSettings, EvaluationSettings
from rec_ray.contracts import Evaluation, EvaluationFacts
from rec_ray.evaluation.evaluate import confirm_collapse
from rec_ray.retrieval.features.catalogue import Catalogue
from rec_ray.retrieval.features.timelines import Timelines, query_batch
from rec_ray.retrieval.model.inference import embed_as_history, embed_catalogue, embed_queries
from rec_ray.schema import Split

TEST = Split.TEST

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.usefixtures("local_ray")]

METHODS = ["model", "popularity", "recent_popularity", "item_knn", "random_walk", "item_transitions"]


def evaluate(tiny, data=None, exclude_seen=True, **settings):
    from rec_ray.evaluation.evaluate import evaluate_model

    wanted, candidates = EvaluationSettings(**settings), CandidateSettings(exclude_seen=exclude_seen)
    return evaluate_model(data or tiny.data, tiny.bundle, wanted, tiny.storage, candidates=candidates)


def timelines_of(tiny):
    return pq.read_table(tiny.data.timelines, filesystem=tiny.storage.filesystem)


def of_users(tiny, users, path):
    """Return the tiny data with the timelines of some users only."""
    table = timelines_of(tiny)
    pq.write_table(table.filter(pc.is_in(table["user_id"], pa.array(users))), path)
    return dataclasses.replace(tiny.data, timelines=str(path))


def reference(tiny, exclude_seen, ks=(5, 10)):
    """Rank everything for one user after the other: method -> metric -> mean, and what was counted on the way."""
    shapes = tiny.bundle.preprocessor
    catalogue = Catalogue.from_table(
        pq.read_table(tiny.data.catalogue, filesystem=tiny.storage.filesystem), shapes.items.shape
    )
    table = timelines_of(tiny)
    timelines = Timelines.from_table(table, shapes.users.shape)
    rows = table.to_pylist()
    counts = np.zeros(len(catalogue) + 1)
    for row in rows:
        for item, split, weight in zip(row["item_index"], row["split"], row["weight"], strict=True):
            counts[item] += split < TEST and weight > 0
    with torch.inference_mode():
        items = embed_catalogue(tiny.bundle.model, catalogue)
        history = embed_as_history(tiny.bundle.model, catalogue, items)
    facts = {"targets": 0, "seen_targets": 0, "unknown_targets": 0}
    values = {"model": [], "popularity": []}
    for place, row in enumerate(rows):
        events = list(zip(row["item_index"], row["split"], row["weight"], strict=True))
        seen = {item for item, split, _ in events if split < TEST}
        held_out = [item for item, split, weight in events if split == TEST and weight > 0]
        facts["unknown_targets"] += sum(not catalogue.known[item] for item in held_out)
        targets = {item for item in held_out if catalogue.known[item]}
        if exclude_seen:
            facts["seen_targets"] += len(targets & seen)
            targets -= seen
        facts["targets"] += len(targets)
        if not targets:
            continue
        ranking = [item for item in range(1, len(catalogue) + 1) if catalogue.known[item]]
        if exclude_seen:
            ranking = [item for item in ranking if item not in seen]
        batch = query_batch(timelines, np.array([place]), split=TEST, query=1, history_length=50)
        with torch.inference_mode():
            own = (items @ embed_queries(tiny.bundle.model, batch, history)[0]).tolist()
        for method, scores in (("model", own), ("popularity", counts.tolist())):
            order = sorted(ranking, key=lambda item, scores=scores: (-scores[item], item))
            ranks = sorted(order.index(item) + 1 for item in targets)
            found = {"mrr": 1 / ranks[0]}
            for k in ks:
                hits = [rank for rank in ranks if rank <= k]
                ideal = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(ranks)) + 1))
                found[f"recall@{k}"] = len(hits) / len(ranks)
                found[f"ndcg@{k}"] = sum(1 / math.log2(rank + 1) for rank in hits) / ideal
            found["first"] = order[:10]
            values[method].append(found)
    means = {
        method: {name: float(np.mean([found[name] for found in own])) for name in own[0] if name != "first"}
        for method, own in values.items()
    }
    for method, own in values.items():
        shown = {item for found in own for item in found["first"]}
        means[method]["coverage@10"] = len(shown) / int(catalogue.known.sum())
    return means, len(values["model"]), facts


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_metrics_are_those_of_a_loop_over_users(tiny_data, exclude_seen):
    means, users, facts = reference(tiny_data, exclude_seen)
    found = evaluate(tiny_data, ks=[5], exclude_seen=exclude_seen)
    assert list(found.metrics) == METHODS
    for method, expected in means.items():
        assert {name: found.metrics[method][name] for name in expected} == pytest.approx(expected, abs=1e-9), method
    assert (found.users, found.targets) == (users, facts["targets"])
    assert {name: getattr(found.facts, name) for name in facts} == facts
    assert facts["unknown_targets"] == 2, "`u0` and `u1` took `late`"
    assert (facts["seen_targets"] > 20) == exclude_seen
    if exclude_seen:
        # Nine of ten events stay in a group of 15 items: who counts pairs must see it, popularity cannot.
        assert found.metrics["item_knn"]["recall@10"] > 1.5 * found.metrics["popularity"]["recall@10"]
    names = set(found.metrics["model"])
    assert names == {
        *("recall@5", "recall@10", "ndcg@5", "ndcg@10", "mrr", "mrr@20", "novelty@10", "coverage@10"),
    }
    for method in METHODS:
        assert set(found.metrics[method]) == names
        for name, (low, high) in found.intervals[method].items():
            assert low - 1e-9 <= found.metrics[method][name] <= high + 1e-9


def test_targets_of_users_of_whom_none_is_left_are_counted_too(tiny_data, tmp_path):
    found = evaluate(tiny_data, of_users(tiny_data, ["glutton"], tmp_path / "glutton.parquet"))
    assert (found.metrics, found.users, found.targets) == ({}, 0, 0)
    assert found.facts.seen_targets == 1


def test_without_a_test_user_there_are_no_metrics_and_it_is_said(tiny_data, tmp_path, caplog):
    from rec_ray.evaluation.gate import check_gate

    tested = [row["user_id"] for row in timelines_of(tiny_data).to_pylist() if TEST in row["split"]]
    assert 50 < len(tested) < 202
    others = [user for user in timelines_of(tiny_data)["user_id"].to_pylist() if user not in tested]
    found = evaluate(tiny_data, of_users(tiny_data, others, tmp_path / "others.parquet"))
    assert found == Evaluation({}, 0, 0, facts=found.facts)
    assert "no user has a held-out positive event: there are no metrics" in caplog.messages
    assert check_gate(found, EvaluationSettings(gate="refuse")) == "off"


def test_a_live_version_is_judged_on_the_same_users(tiny_data):
    """A live version with the same towers has the same figures; one whose item vectors are turned around has others."""
    from rec_ray.contracts import LiveVersion
    from rec_ray.evaluation.evaluate import evaluate_model

    def beside(bundle):
        live = LiveVersion("6", bundle, tiny_data.data)
        settings = EvaluationSettings(ks=[5])
        return evaluate_model(
            tiny_data.data, tiny_data.bundle, settings, tiny_data.storage, candidates=CandidateSettings(), live=live
        )

    same = beside(tiny_data.bundle)
    assert list(same.metrics) == ["model", "live", *METHODS[1:]]
    assert same.metrics["live"] == pytest.approx(same.metrics["model"])
    assert same.facts.live_version == "6"
    assert same.differences["live"]["recall@10"] == (0.0, 0.0)
    assert set(same.differences) == {"live", *METHODS[1:]}

    turned = copy.deepcopy(tiny_data.bundle.model)
    with torch.no_grad():
        turned.item_tower.ids.weight.mul_(-1)
    other = beside(dataclasses.replace(tiny_data.bundle, model=turned))
    assert other.metrics["model"] == pytest.approx(same.metrics["model"])
    assert other.metrics["live"]["mrr"] != pytest.approx(same.metrics["live"]["mrr"])
    low, high = other.differences["live"]["recall@10"]
    difference = other.metrics["model"]["recall@10"] - other.metrics["live"]["recall@10"]
    assert low <= difference <= high


def test_a_live_version_of_other_users_is_said_and_left_out(tiny_data, tmp_path, caplog):
    from rec_ray.contracts import LiveVersion
    from rec_ray.evaluation.evaluate import evaluate_model

    fewer = of_users(tiny_data, ["u0", "u1", "u2", "u3"], tmp_path / "fewer.parquet")
    live = LiveVersion("6", tiny_data.bundle, fewer)
    found = evaluate_model(
        tiny_data.data,
        tiny_data.bundle,
        EvaluationSettings(),
        tiny_data.storage,
        candidates=CandidateSettings(),
        live=live,
    )
    assert list(found.metrics) == METHODS and found.facts.live_version is None
    assert any("the live version 6 is not compared" in message for message in caplog.messages)


def test_segments_examples_and_curves_are_those_of_the_users(tiny_data):
    found = evaluate(tiny_data, ks=[5])
    table = timelines_of(tiny_data)
    rows = {row["user_id"]: row for row in table.to_pylist()}
    segments = found.segments
    assert (
        segments["warm_users"].users + (segments["cold_users"].users if "cold_users" in segments else 0) == found.users
    )
    quarters = [segments[f"activity_{number}"] for number in range(1, 5) if f"activity_{number}" in segments]
    assert sum(quarter.users for quarter in quarters) == segments["warm_users"].users
    assert max(quarter.users for quarter in quarters) < 0.5 * found.users
    mean = sum(quarter.users * quarter.metrics["model"]["recall@10"] for quarter in quarters) / found.users
    assert mean == pytest.approx(found.metrics["model"]["recall@10"])
    low, high = segments["warm_users"].intervals["model"]["recall@10"]
    assert low <= segments["warm_users"].metrics["model"]["recall@10"] <= high

    catalogue = pq.read_table(tiny_data.data.catalogue, filesystem=tiny_data.storage.filesystem)
    index = dict(zip(catalogue["item_id"].to_pylist(), catalogue["item_index"].to_pylist(), strict=True))
    assert len(found.examples) == len({example.user_id for example in found.examples}) == 5
    for example in found.examples:
        row = rows[example.user_id]
        events = list(zip(row["item_index"], row["split"], row["weight"], strict=True))
        before = [item for item, split, weight in events if split < TEST and weight > 0]
        assert [index[item] for item in example.history] == before[-12:]
        assert {index[item] for item in example.taken} <= {i for i, split, w in events if split == TEST and w > 0}
        assert not {index[item] for item in example.recommended} & set(before)
        assert list(example.scores) == sorted(example.scores, reverse=True)

    counts = sorted(catalogue["count"].to_pylist(), reverse=True)
    assert found.distributions.learned == [[place + 1, count] for place, count in enumerate(counts)]
    assert sum(count for _, count in found.distributions.recommended) == 10 * found.users
    scores = found.distributions.scores
    assert len(scores["taken"]) == len(scores["random"]) == found.users
    periods = found.facts.periods
    assert sum(number for number, _, _ in periods.values()) == sum(len(row["split"]) for row in rows.values())
    assert periods["train"][2] <= periods["validation"][1] <= periods["validation"][2] <= periods["test"][1]


@pytest.mark.parametrize(
    ("low", "cosine", "stays"), [(0.01, 0.3, False), (-0.01, 0.3, True), (0.01, 0.996, True), (None, 0.3, True)]
)
def test_a_short_training_that_ranks_better_than_popularity_did_not_collapse(low, cosine, stays):
    """Nearly identical item vectors are a collapse whatever the ranking: search and similar items need them."""
    facts = EvaluationFacts(nothing_learned="the model learned nothing", mean_cosine=cosine)
    differences = {} if low is None else {"popularity": {"ndcg@10": (low, 0.2)}}
    assert (confirm_collapse(facts, differences).nothing_learned is not None) == stays
