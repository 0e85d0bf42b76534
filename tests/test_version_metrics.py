"""Metrics of the versions in each situation, and the alerts that fire then and only then."""

import json
import operator
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from manifests import CLUSTER, objects, the

from rec_ray.cli.version_metrics import HELP, MetricsServer, collect_metrics
from rec_ray.config import Settings
from rec_ray.errors import ConfigError
from rec_ray.retrieval.profiles.data_profile import DataProfile
from rec_ray.runs.check_records import write_profile
from rec_ray.runs.stores import open_object_store, open_version_database
from rec_ray.versions.registry import VersionRow

NOW = 2_000_000_000.0
COMPARISONS = {">": operator.gt, "<": operator.lt, "==": operator.eq}
SELECTOR = r"[a-z_]+(?:\{[^}]*\})?"

Metrics = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    given = {"storage": {"url": str(tmp_path / "store")}, "database": {"url": f"sqlite:///{tmp_path / 'v.db'}"}}
    made = Settings.model_validate(given)
    open_version_database(made).migrate()
    return made


def run(
    settings: Settings, run_id: str, *, users: int = 100, exit_code: int | None = None, publish: bool = True
) -> None:
    """Leave in database and store what a run leaves."""
    version = open_version_database(settings).reserve(run_id)
    status: dict[str, Any] = {"state": "done" if exit_code is None else "failed", "exit_code": exit_code}
    status |= {"updated_at": datetime.now(UTC).isoformat(), "counts": {"candidates": {"users": users}}}
    open_object_store(settings).write_bytes(f"runs/{run_id}/status.json", json.dumps(status).encode())
    if publish:
        profile = DataProfile(newest=int(datetime.now(UTC).timestamp()) - 3600)
        write_profile(open_object_store(settings), version, profile)
        open_version_database(settings).publish(VersionRow(version, run_id, metrics={"ndcg@10": 0.25, "note": "text"}))


def read(text: str) -> Metrics:
    """Read the exposition format."""
    found: Metrics = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        sample = re.fullmatch(r"([a-z_]+)(?:\{(.*)\})? (\S+)", line)
        assert sample, line
        labels = frozenset(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', sample[2] or ""))
        found[sample[1], labels] = float(sample[3])
    return found


def values(metrics: Metrics, selector: str) -> list[float]:
    """Return the values that a selector matches: equality and regular expressions."""
    name, _, rest = selector.partition("{")
    wanted = re.findall(r'(\w+)(=~?)"([^"]*)"', rest)

    def matches(labels: dict[str, str]) -> bool:
        return all(
            re.fullmatch(text, labels.get(label, "")) if kind == "=~" else labels.get(label, "") == text
            for label, kind, text in wanted
        )

    return [value for (each, labels), value in metrics.items() if each == name and matches(dict(labels))]


def fires(expression: str, metrics: Metrics, now: float = NOW) -> bool:
    """Evaluate the part of PromQL that the rules use; anything else is an error."""
    if absent := re.fullmatch(rf"absent\(({SELECTOR})\)", expression):
        return not values(metrics, absent[1])
    if older := re.fullmatch(rf"time\(\) - ({SELECTOR}) > (\d+)", expression):
        return any(now - value > float(older[2]) for value in values(metrics, older[1]))
    if ratio := re.fullmatch(rf"({SELECTOR}) < ([\d.]+) \* ignoring\(\w+\) ({SELECTOR})", expression):
        pairs = zip(values(metrics, ratio[1]), values(metrics, ratio[3]), strict=False)
        return any(left < float(ratio[2]) * right for left, right in pairs)
    plain = re.fullmatch(rf"({SELECTOR}) (>|<|==) ([\d.]+)", expression)
    assert plain, f"this test cannot evaluate {expression}; extend it"
    return any(COMPARISONS[plain[2]](value, float(plain[3])) for value in values(metrics, plain[1]))


def alerts(metrics: Metrics, now: float | None = None) -> set[str]:
    rules = the("monitoring", "PrometheusRule")["spec"]["groups"][0]["rules"]
    now = datetime.now(UTC).timestamp() if now is None else now
    return {rule["alert"] for rule in rules if fires(rule["expr"], metrics, now)}


def test_a_night_as_it_should_be_raises_no_alert(settings: Settings) -> None:
    run(settings, "first")
    run(settings, "second")
    metrics = read(collect_metrics(settings))

    assert alerts(metrics) == set()
    assert values(metrics, 'rec_ray_live_version_info{version="2"}') == [1.0]
    assert values(metrics, 'rec_ray_live_metric{metric="ndcg@10"}') == [0.25]
    assert values(metrics, 'rec_ray_newest_run_state{state="done"}') == [1.0]
    assert values(metrics, 'rec_ray_newest_run_state{state="failed"}') == [0.0]
    assert values(metrics, "rec_ray_users_with_lists") == [100.0, 100.0]
    assert {name for name, _ in metrics} == {f"rec_ray_{name}" for name in HELP}


@pytest.mark.parametrize(("exit_code", "alert"), [(5, "RecRayRefusedByGate"), (6, "RecRayPartlyPublished"), (1, None)])
def test_a_run_that_the_gate_refuses_or_that_publishes_in_part_raises_its_alert(
    settings: Settings, exit_code: int, alert: str | None
) -> None:
    run(settings, "first")
    run(settings, "second", exit_code=exit_code, publish=False)

    assert alerts(read(collect_metrics(settings))) == ({alert} if alert else set())


def test_no_new_version_for_26_hours_raises_an_alert(settings: Settings) -> None:
    run(settings, "first")
    metrics = read(collect_metrics(settings))
    (live,) = values(metrics, "rec_ray_live_version_updated_timestamp_seconds")

    assert alerts(metrics, live + 25 * 3600) == set()
    assert alerts(metrics, live + 27 * 3600) == {"RecRayNoNewVersion"}


@pytest.mark.parametrize(("users", "expected"), [(81, set()), (79, {"RecRayListsShrunk"})])
def test_lists_for_a_fifth_fewer_users_raise_an_alert(settings: Settings, users: int, expected: set[str]) -> None:
    run(settings, "first")
    run(settings, "second", users=users)

    assert alerts(read(collect_metrics(settings))) == expected


def test_a_job_that_failed_raises_an_alert_and_that_of_another_program_does_not() -> None:
    def failed(job: str) -> set[str]:
        labels = frozenset({("condition", "true"), ("job_name", job)})
        return alerts({("kube_job_failed", labels): 1.0, ("rec_ray_up", frozenset()): 1.0})

    assert failed("rec-ray-29384760") == {"RecRayRunFailed"}
    assert failed("backup-29384760") == failed("rec-ray-29384760-run") == set()


def test_a_database_that_is_away_is_the_only_thing_known(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "v.db").write_bytes(b"no database at all")
    metrics = read(collect_metrics(settings))

    assert metrics == {("rec_ray_up", frozenset()): 0.0}
    assert alerts(metrics) == {"RecRayMetricsUnread"}
    assert alerts({}) == {"RecRayMetricsMissing"}


def test_a_damaged_status_is_not_taken_for_a_good_one(settings: Settings) -> None:
    run(settings, "first")
    open_object_store(settings).write_bytes("runs/first/status.json", b"{")

    assert read(collect_metrics(settings)) == {("rec_ray_up", frozenset()): 0.0}


def test_before_the_first_version_there_is_nothing_to_alert_on(settings: Settings) -> None:
    assert read(collect_metrics(settings)) == {("rec_ray_up", frozenset()): 1.0}


def test_labels_are_escaped(settings: Settings) -> None:
    open_version_database(settings).publish(VersionRow('a"b\\c', "first"))

    assert r'rec_ray_live_version_info{version="a\"b\\c"} 1.0' in collect_metrics(settings)


@pytest.fixture
def address(settings: Settings) -> Iterator[str]:
    with MetricsServer(settings, "127.0.0.1:0") as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_it_is_served_as_prometheus_wants_it(settings: Settings, address: str) -> None:
    run(settings, "first")
    with urllib.request.urlopen(f"{address}/metrics") as response:
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert values(read(response.read().decode()), 'rec_ray_live_version_info{version="1"}') == [1.0]
    with urllib.request.urlopen(f"{address}/healthz") as response:
        assert response.status == 200
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{address}/other")


@pytest.mark.parametrize("address", ["8080", "host:", "0.0.0.0:http", "0.0.0.0:99999"])
def test_an_address_that_is_none_is_refused(settings: Settings, address: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"--listen {address}")):
        MetricsServer(settings, address)


def test_the_pod_is_monitored_and_may_be_reached() -> None:
    pod = the("monitoring", "Deployment", "rec-ray-metrics")["spec"]["template"]
    (port,) = pod["spec"]["containers"][0]["ports"]
    monitor = the("monitoring", "PodMonitor")["spec"]

    assert monitor["podMetricsEndpoints"][0]["port"] == port["name"]
    assert monitor["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert f"0.0.0.0:{port['containerPort']}" in pod["spec"]["containers"][0]["command"]
    ingress = the("monitoring", "NetworkPolicy")["spec"]["ingress"]
    assert {"from": [{"namespaceSelector": {}}], "ports": [{"port": 8080, "protocol": "TCP"}]} in ingress
    secrets = {each["metadata"]["name"]: each for each in objects("monitoring") if each["kind"] == "Secret"}
    assert secrets == {}, "those of overlays/production"
    example = (CLUSTER / "components/mounted-secrets/secret.example.yaml").read_text()
    for item in next(volume["secret"]["items"] for volume in pod["spec"]["volumes"] if "secret" in volume):
        assert f"\n  {item['key']}:" in example


def test_the_dashboard_shows_metrics_that_exist() -> None:
    dashboard = json.loads((CLUSTER / "grafana-dashboard.json").read_text())
    text = json.dumps(dashboard["panels"])
    shown = set(re.findall(r"(?<!ray_)\brec_ray_(\w+)", text))

    assert {"live_version_updated_timestamp_seconds", "users_with_lists", "live_metric"} <= shown <= set(HELP)
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)


def test_a_run_without_a_heartbeat_a_stuck_lock_and_an_unfinished_push_raise_their_alerts(settings: Settings) -> None:
    run(settings, "first")
    database, storage = open_version_database(settings), open_object_store(settings)
    version = database.reserve("killed")
    silent = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    status = {"state": "running", "exit_code": None, "updated_at": silent, "heartbeat_seconds": 60.0}
    storage.write_bytes("runs/killed/status.json", json.dumps(status).encode())
    with database.publishing_lock("run killed", 900) as lock:
        database.begin_push(version, lock)
        metrics = read(collect_metrics(settings))

    assert values(metrics, "rec_ray_unfinished_pushes") == [1.0]
    assert alerts(metrics) == {"RecRayRunLost", "RecRayPushUnfinished"}
    metrics["rec_ray_lock_held_seconds", frozenset()] += 7 * 3600
    assert "RecRayLockStuck" in alerts(metrics)
    (newest,) = values(metrics, "rec_ray_newest_event_timestamp_seconds")
    assert "RecRayNoNewEvents" in alerts(metrics, newest + 51 * 3600)
