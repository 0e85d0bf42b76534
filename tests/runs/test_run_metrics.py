"""Metrics of the step events of a run; `test_nodes` collects them from a real head as Prometheus does."""

import json
import re
from typing import Any, cast

import pytest
from manifests import CLUSTER

from rec_ray.contracts import Candidates, Evaluation, RowCounts, TrainedModel, TrainingFacts, UpdateReport
from rec_ray.logs import LOGGER, configure_logging
from rec_ray.runs import metrics as run_metrics
from rec_ray.runs.metrics import EpochMetrics, exported_metrics
from rec_ray.step_events import step

Recorded = dict[tuple[str, str], float]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """(name, tags) -> the value of a gauge or the sum of a counter."""
    values: Recorded = {}
    configure_logging()

    class Double:
        def __init__(self, name: str, description: str = "", tag_keys: tuple[str, ...] = ()) -> None:
            self.name, self.tag_keys = name, tag_keys
            assert description

        def _key(self, tags: dict[str, str] | None) -> tuple[str, str]:
            assert set(tags or {}) == set(self.tag_keys)
            return self.name, ",".join((tags or {}).values())

    class Gauge(Double):
        def set(self, value: float, tags: dict[str, str] | None = None) -> None:
            values[self._key(tags)] = value

    class Counter(Double):
        def inc(self, value: float = 1.0, tags: dict[str, str] | None = None) -> None:
            assert value > 0
            values[self._key(tags)] = values.get(self._key(tags), 0) + value

    monkeypatch.setattr(run_metrics, "Gauge", Gauge)
    monkeypatch.setattr(run_metrics, "Counter", Counter)
    return values


NO_TOWERS = cast(Any, None)


@pytest.mark.parametrize("level", ["INFO", "CRITICAL"])
@pytest.mark.parametrize(
    "names",
    [
        ("load_features", "train", "evaluate", "candidates", "update_features"),
        ("a", "b", "c", "d", "e"),
        ("update_features", "candidates", "evaluate", "train", "load_features"),
    ],
)
def test_a_run_is_counted_by_its_results_whatever_the_step_names_and_the_log_level(
    recorded: Recorded, names: tuple[str, ...], level: str
) -> None:
    LOGGER.setLevel(level)
    results = [
        RowCounts(read=100, kept=90, null_keys=10),
        TrainedModel(NO_TOWERS, (), 1, NO_TOWERS, facts=TrainingFacts(steps=40)),
        Evaluation(
            {"model": {"recall@10": 0.25, "recall@100": 0.5, "mrr": 0.125}, "popularity": {"recall@10": 1}}, 7, 9
        ),
        Candidates("7", "two-tower/7/candidates", items=60, users=12, k=20),
        UpdateReport("7", {"item_embed": 60, "user_embed": 12}, {"item_embed": 3}),
    ]
    with exported_metrics():
        for name, result in zip(names, results, strict=True):
            with step(name, version="7") as running:
                assert recorded["rec_ray_step_running", name] == 1
                running.add(rows=999, read=999, users=999, steps=999, departed=999)
                running.result = result

    assert {key: value for key, value in recorded.items() if "_step_" not in key[0]} == {
        ("rec_ray_rows_read", ""): 100,
        ("rec_ray_rows_dropped", ""): 10,
        ("rec_ray_train_steps", ""): 40,
        ("rec_ray_recall", "10"): 0.25,
        ("rec_ray_recall", "100"): 0.5,
        ("rec_ray_users_scored", ""): 12,
        ("rec_ray_push_rows", "item_embed"): 60,
        ("rec_ray_push_rows", "user_embed"): 12,
    }
    for name in names:
        assert recorded["rec_ray_step_running", name] == 0
        assert recorded["rec_ray_step_seconds", name] >= 0


@pytest.mark.parametrize("publishes", [True, False])
def test_a_failed_publication_is_counted_and_nothing_is_recorded_after_the_block(
    recorded: Recorded, publishes: bool
) -> None:
    with exported_metrics(), pytest.raises(ValueError), step("push", publishes=publishes):
        raise ValueError
    with step("candidates"):
        pass

    errors = {("rec_ray_push_errors", ""): 1} if publishes else {}
    assert recorded == {
        ("rec_ray_step_running", "push"): 0,
        ("rec_ray_steps_failed", "push"): 1,
        **errors,
    }


def test_an_epoch_is_shown_as_the_first_worker_reports_it(recorded: Recorded) -> None:
    EpochMetrics().after_report(None, [{"epoch": 3, "loss": 4.5, "validation_ndcg@10": 0.1}, {"loss": 9.0}], None)

    assert recorded == {
        ("rec_ray_train_epoch", ""): 3,
        ("rec_ray_train_loss", ""): 4.5,
        ("rec_ray_train_validation_ndcg_10", ""): 0.1,
    }


def test_the_dashboard_asks_for_metrics_that_there_are(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray puts `ray_` before a name and `_total` behind that of a counter."""
    made: set[str] = set()
    for kind, behind in (("Gauge", ""), ("Counter", "_total")):
        double = getattr(run_metrics, kind)

        def make(name: str, *rest: Any, double: Any = double, behind: str = behind) -> Any:
            made.add(f"ray_{name}{behind}")
            return double(name, *rest)

        monkeypatch.setattr(run_metrics, kind, make)
    run_metrics.RunMetrics()
    EpochMetrics().after_report(None, [{"epoch": 1, "loss": 4.5, "validation_ndcg@10": 0.1}], None)

    dashboard = json.loads((CLUSTER / "grafana-dashboard.json").read_text())
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"ray_rec_ray_\w+", target["expr"])
    }
    assert asked <= made
    assert made - asked == {"ray_rec_ray_train_epoch"}
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
