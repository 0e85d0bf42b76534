"""The gate through the command line: models that are better and worse by construction, and what becomes of each.

Items of four groups are taken very unevenly, and users keep to their group: popularity finds much, a model that knows
the groups more, and towers that have learned nothing hardly anything.
"""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from rec_ray.cli.main import main
from rec_ray.logs import LOGGER

# The first test waits for four runs.
pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(1800)]

EVIL = "<script>alert(1)</script>"
USERS, ITEMS, GROUPS, EVENTS = 150, 60, 4, 3000
NEWER = [f"i{n}" for n in range(4)]
"""Items that nobody took yet when the first version learned: the most popular ones of each group."""
LEARNS = ("--set", "train.epochs=8", "--set", "train.learning_rate=0.02")
# Without a history all users have the same vector, which one step at this rate leaves where it started.
LEARNS_NOTHING = ("--set", "model.history=none", "--set", "train.epochs=1", "--set", "train.learning_rate=0.000000001")


def call(command: str, *arguments: object) -> tuple[int, Any, str]:
    """Run a command in this process; return its exit code, its answer if there is one, and what it said."""
    out, said = io.StringIO(), io.StringIO()
    handlers, propagates = LOGGER.handlers[:], LOGGER.propagate
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            code = main([command, *map(str, arguments), "--json"])
    finally:
        LOGGER.handlers[:], LOGGER.propagate = handlers, propagates
    return code, json.loads(out.getvalue()) if out.getvalue().strip() else None, said.getvalue()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_project: Any, tiny_tables: Any) -> Path:
    generator = np.random.default_rng(0)
    start = np.datetime64("2024-01-01", "us")
    who = generator.integers(USERS, size=EVENTS)
    within = 1 / (1 + np.arange(ITEMS // GROUPS)) ** 1.5
    place = generator.choice(ITEMS // GROUPS, size=EVENTS, p=within / within.sum())
    when = start + np.sort(generator.integers(100 * 86_400, size=EVENTS)).astype("timedelta64[s]")
    before = np.full(max(USERS, ITEMS), start - np.timedelta64(1, "D"))
    return make_project(
        tmp_path_factory.mktemp("gate"),
        users={"user_id": [f"u{n}" for n in range(USERS)], "event_timestamp": before[:USERS]},
        items={
            "item_id": [f"i{n}" for n in range(ITEMS)],
            "name": [EVIL if n == 0 else f"product {n}" for n in range(ITEMS)],
            "category": [f"group {n % GROUPS}" for n in range(ITEMS)],
            "event_timestamp": before[:ITEMS],
        },
        interactions={
            "user_id": [f"u{n}" for n in who],
            "item_id": [f"i{n}" for n in place * GROUPS + who % GROUPS],
            "event_timestamp": when,
        },
        settings={
            "model": {"history": "mean", "embedding_size": 16},
            "train": {"refit": "off"},
            "candidates": {"k": 20, "exclude_seen": False},
        },
    )


@pytest.fixture(scope="module")
def runs(project: Path) -> dict[str, tuple[int, Any, str]]:
    """Four runs one after the other; each that is published is live for the next, and the first knows fewer items."""
    own = ("-C", project)
    events = project / "feature_repo" / "data" / "interactions.parquet"
    everything = pq.read_table(events)
    newer = pc.is_in(everything["item_id"], value_set=pa.array(NEWER))
    pq.write_table(everything.filter(pc.invert(newer)), events)
    off = call("run", *own, *LEARNS_NOTHING, "--set", "evaluation.gate=off")
    pq.write_table(everything, events)
    assert off[0] == 0, off[2]
    return {
        "off": off,
        "again": call("evaluate", off[1]["version"], *own),
        "passed": call("run", *own, *LEARNS, "--set", "evaluation.gate=refuse"),
        "refused": call("run", *own, *LEARNS_NOTHING, "--set", "evaluation.gate=refuse"),
        "warned": call("run", *own, *LEARNS_NOTHING, "--set", "evaluation.gate=warn", "--set", "features.item={}"),
    }


def test_the_gate_can_be_off(runs: Any) -> None:
    code, report, said = runs["off"]
    assert (code, report["gate"]) == (0, "off"), said
    metrics = report["evaluation"]["metrics"]
    assert metrics["model"]["ndcg@10"] < 0.7 * metrics["popularity"]["ndcg@10"]
    assert "live" not in metrics, "nothing was live"


def test_a_model_better_than_popularity_and_the_live_version_passes(runs: Any, project: Path) -> None:
    code, report, said = runs["passed"]
    assert (code, report["gate"]) == (0, "passed"), said
    evaluation = report["evaluation"]
    model, live, popularity = (evaluation["metrics"][name]["ndcg@10"] for name in ("model", "live", "popularity"))
    assert model > 1.2 * popularity > 1.2 * live
    assert list(evaluation["metrics"])[:2] == ["model", "live"]
    assert evaluation["facts"]["live_version"] == runs["off"][1]["version"]
    low, _ = evaluation["differences"]["live"]["ndcg@10"]
    assert low > 0
    # The same towers on the same users: what `evaluate` finds for the older version, whose vocabulary is smaller.
    again = runs["again"][1]["evaluation"]
    assert again["users"] == evaluation["users"] != runs["off"][1]["evaluation"]["users"]
    assert evaluation["metrics"]["live"] == pytest.approx(again["metrics"]["model"], abs=1e-6)
    vocabularies = [
        json.loads((project / "store" / "two-tower" / runs[name][1]["version"] / "preprocessor.json").read_text())
        for name in ("off", "passed")
    ]
    assert set(vocabularies[1]["item_ids"]) - set(vocabularies[0]["item_ids"]) == set(NEWER)
    for segment in evaluation["segments"].values():
        assert set(segment["metrics"]) == set(evaluation["metrics"])
    quarters = [evaluation["segments"][f"activity_{n}"]["users"] for n in range(1, 5)]
    assert sum(quarters) == evaluation["segments"]["warm_users"]["users"]
    assert evaluation["segments"]["warm_users"]["users"] == evaluation["users"]


def test_a_model_worse_than_both_is_stored_and_not_published(runs: Any, project: Path) -> None:
    code, report, said = runs["refused"]
    assert (code, report["code"]) == (5, 5)
    line = said.strip().splitlines()[-1]
    assert line.startswith("rec-ray: the model learned nothing beyond popularity (loss ")
    assert "and the model's NDCG@10 is 0." in line
    assert "below popularity's 0." in line and "(evaluation.gate: refuse)" in line
    assert f"below that of the live version {runs['passed'][1]['version']} 0." in line
    versions = {row["version"]: row["state"] for row in call("versions", "-C", project)[1]["versions"]}
    refused = str(int(runs["passed"][1]["version"]) + 1)
    assert versions[refused] == "refused"
    page = (project / "store" / "two-tower" / refused / "report.html").read_text(encoding="utf-8")
    assert "gate: refused" in page and "below popularity&#39;s 0." in page


def test_a_warning_publishes_all_the_same(runs: Any, project: Path) -> None:
    code, report, said = runs["warned"]
    assert (code, report["gate"]) == (0, "warned"), said
    assert "below popularity's" in said and "published all the same (evaluation.gate: warn)" in said
    assert report["advice"][0].startswith("The model's NDCG@10 0.") and "--set train.epochs=auto" in report["advice"][1]
    facts = report["evaluation"]["facts"]
    removed = ["category", *(["name"] if "name" in facts["live_without"] else [])]
    assert sorted(facts["live_without"]) == removed
    (without,) = (
        line for line in said.splitlines() if f"version {runs['passed'][1]['version']} is compared without" in line
    )
    assert all(f"'{name}'" in without for name in removed)
    assert "Traceback" not in said
    (live,) = (row for row in call("versions", "-C", project)[1]["versions"] if row["state"] == "live")
    assert live["version"] == report["version"]


def test_a_run_leaves_its_report_and_the_command_makes_it_again(runs: Any, project: Path, tmp_path: Path) -> None:
    from rec_ray.reports.page.facts import ReportFacts

    report = runs["passed"][1]
    stored = Path(report["where"]["report"])
    assert stored == project / "store" / "two-tower" / report["version"] / "report.html"
    page = stored.read_text(encoding="utf-8")
    facts = ReportFacts.from_json(stored.with_name("report.json").read_bytes())
    assert facts.gate == "passed" and facts.evaluation.users == report["evaluation"]["users"]
    assert len(facts.item_map.item_ids) == facts.item_map.total == ITEMS
    assert facts.names["i0"] == EVIL and facts.categories["i5"] == "group 1"
    assert {"load_features", "training_data", "train", "evaluate", "candidates"} <= set(facts.seconds)
    assert len(facts.evaluation.examples) == 5
    for example in facts.evaluation.examples:
        assert len(example.recommended) == 10 and example.history and example.taken
        # Nine of ten recommendations of a model that knows the groups are of the group of the history.
        group = int(example.user_id[1:]) % GROUPS
        assert sum(int(item[1:]) % GROUPS == group for item in example.recommended) >= 8
    assert EVIL not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    stored.unlink()
    output = tmp_path / "page.html"
    code, answer, said = call("report", report["version"], "-C", project, "--output", output)
    assert code == 0, said
    assert answer == {"version": report["version"], "report": str(stored), "file": str(output)}
    assert output.read_text(encoding="utf-8") == stored.read_text(encoding="utf-8") == page


def test_without_stored_facts_the_report_says_what_the_model_says_of_itself(runs: Any, project: Path) -> None:
    version = runs["off"][1]["version"]
    folder = project / "store" / "two-tower" / version
    (folder / "report.json").unlink()
    code, answer, said = call("report", version, "-C", project)
    assert code == 0, said
    page = Path(answer["report"]).read_text(encoding="utf-8")
    value = runs["off"][1]["evaluation"]["metrics"]["model"]["recall@10"]
    assert f"{value:.4f}" in page and 'id="plot-loss"' in page and 'id="plot-map"' not in page
    assert call("report", "77", "-C", project)[0] == 4


def test_a_report_that_fails_is_said_and_stops_nothing(tiny_data: Any) -> None:
    from rec_ray.contracts import Evaluation
    from rec_ray.reports import html as write_report

    def read_fields(item_ids: Any, fields: Any) -> Any:
        raise ConnectionError("the offline store is gone")

    figures = write_report.RunFigures("passed", (), {}, {})
    said = write_report.write_report(
        tiny_data.bundle,
        "1",
        Evaluation({}, 0, 0),
        tiny_data.data,
        tiny_data.storage,
        read_fields,
        item_name="name",
        run=figures,
    )
    assert said == "not written: ConnectionError: the offline store is gone"
    assert not tiny_data.storage.exists("two-tower/1/report.html")
