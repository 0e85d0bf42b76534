"""The whole line as a user runs it: commands in processes of their own, on the generated shop and on real tables."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.usefixtures("processes")

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir() and "CI" not in os.environ, reason="the shared data sets do not lie beside the checkout"
)


def rec_ray(*arguments: object, code: int = 0, timeout: int = 600) -> subprocess.CompletedProcess[str]:
    """Run a command and check its exit code."""
    command = [sys.executable, "-m", "rec_ray.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == code, (
        f"{command} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    )
    return done


def as_json(*arguments: object) -> Any:
    """Run a command with --json: standard output must be one JSON object and nothing else."""
    return json.loads(rec_ray(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("line") / "shop"
    rec_ray("init", folder)
    return folder


@pytest.fixture(scope="module")
def report(shop: Path) -> Any:
    return as_json("run", "-C", shop, "--run-id", "first")


def test_the_model_finds_the_structure_of_the_shop(report: Any) -> None:
    metrics = report["evaluation"]["metrics"]
    counted = {"popularity", "recent_popularity", "item_knn", "random_walk", "item_transitions"}
    assert set(metrics) == {"model", *counted}
    assert metrics["model"]["recall@10"] >= 3 * metrics["popularity"]["recall@10"]
    assert metrics["model"]["ndcg@10"] >= 3 * metrics["popularity"]["ndcg@10"]
    assert report["evaluation"]["users"] > 1000
    low, high = report["evaluation"]["intervals"]["model"]["recall@10"]
    assert low < metrics["model"]["recall@10"] < high


def test_the_stored_layout_is_the_documented_one(shop: Path, report: Any) -> None:
    version = shop / "store" / "two-tower" / report["version"]
    files = {"weights.safetensors", "model.json", "preprocessor.json", "metadata.json", "manifest.json", "candidates"}
    files |= {"evaluated.safetensors", "report.html", "report.json", "profile.json", "checks.json"}
    assert {path.name for path in version.iterdir()} == files
    lists = pq.read_table(version / "candidates" / "recommendations")
    assert [str(field.type) for field in lists.schema] == [
        "string",
        "list<element: string>",
        "list<element: float>",
        "string",
    ]
    assert lists.column_names == ["user_id", "item_ids", "scores", "method"]
    assert lists.num_rows == 2000 == len(set(lists["user_id"].to_pylist()))
    assert all(scores == sorted(scores, reverse=True) for scores in lists["scores"].to_pylist())
    assert {len(items) for items in lists["item_ids"].to_pylist()} == {100}
    items = pq.read_table(version / "candidates" / "item_embeddings")
    assert items.num_rows == 1000
    # What only the run needed is gone.
    assert not list((shop / "store").glob("training/*"))
    kept = {path.name for path in (shop / "store" / "runs" / "first").iterdir()}
    assert kept == {"ledger.json", "log.jsonl", "status.json"}


def test_nothing_seen_is_recommended(shop: Path, report: Any) -> None:
    seen: dict[str, set[str]] = {}
    interactions = pq.read_table(shop / "feature_repo" / "data" / "interactions.parquet")
    for user, item in zip(interactions["user_id"].to_pylist(), interactions["item_id"].to_pylist(), strict=True):
        seen.setdefault(user, set()).add(item)
    lists = pq.read_table(shop / "store" / "two-tower" / report["version"] / "candidates" / "recommendations")
    for row in lists.to_pylist():
        assert not seen.get(row["user_id"], set()) & set(row["item_ids"])


def test_new_products_reach_users_with_their_taste(shop: Path, report: Any) -> None:
    from rec_ray.sample.shop import generate_shop

    truth = generate_shop(0).truth
    item_ids = truth.item_ids.to_pylist()
    department = dict(zip(item_ids, truth.leaf_department[truth.item_leaf].tolist(), strict=True))
    new_by_department: dict[int, set[str]] = {}
    for item in truth.new_items:
        new_by_department.setdefault(department[item], set()).add(item)
    favourites = dict(zip(truth.user_ids.to_pylist(), truth.department_tastes().argmax(axis=1).tolist(), strict=True))
    folder = shop / "store" / "two-tower" / report["version"] / "candidates" / "recommendations"
    hits = chances = 0.0
    for row in pq.read_table(folder).to_pylist():
        fitting = new_by_department.get(favourites[row["user_id"]], set())
        hits += len(fitting & set(row["item_ids"]))
        chances += len(fitting) * len(row["item_ids"]) / len(item_ids)
    assert hits > 1.5 * chances


def test_the_version_is_live_and_feast_answers(shop: Path, report: Any) -> None:
    with sqlite3.connect(shop / "versions.db") as database:
        live = database.execute("SELECT version FROM model_version ORDER BY updated_at DESC LIMIT 1").fetchone()
    assert live == (report["version"],)
    found = as_json("versions", "-C", shop)["versions"]
    assert [(row["version"], row["state"]) for row in found] == [(report["version"], "live")]
    answer = as_json("recommend", "-C", shop, "--any")
    assert answer["version"] == report["version"]
    assert len(answer["item_ids"]) == 10 and set(answer["names"]) == set(answer["item_ids"])
    similar = as_json("similar", "-C", shop, answer["item_ids"][0], "-n", 3)
    assert len(similar["item_ids"]) == 3 and answer["item_ids"][0] not in similar["item_ids"]
    shown = rec_ray("recommend", "-C", shop, "--any").stdout
    assert all(item in shown for item in answer["item_ids"])
    missing = rec_ray("recommend", "-C", shop, "nobody", code=4)
    assert "nobody" in missing.stderr


def test_each_step_alone_gives_the_same_lists(shop: Path, report: Any) -> None:
    folder = shop / "store" / "two-tower" / report["version"] / "candidates" / "recommendations"
    before = {row["user_id"]: row["item_ids"] for row in pq.read_table(folder).to_pylist()}
    judged = as_json("evaluate", report["version"], "-C", shop)
    for method in ("model", "popularity"):
        again, first = (r["evaluation"]["metrics"][method]["recall@10"] for r in (judged, report))
        assert again == pytest.approx(first, abs=2e-3)
    as_json("candidates", report["version"], "-C", shop)
    after = {row["user_id"]: row["item_ids"] for row in pq.read_table(folder).to_pylist()}
    assert sum(before[user] == after[user] for user in before) > 0.99 * len(before)
    replaced = folder.parents[1] / "replaced"
    assert (replaced / "000000" / "recommendations").is_dir(), "noted until the next push"
    published = as_json("publish", report["version"], "-C", shop)
    assert published["counts"]["rows pushed to user_items_push_source"] == 2000
    assert not replaced.exists()


@pytest.mark.parametrize(("interrupt", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_no_version(tiny_project: Path, interrupt: signal.Signals, code: int) -> None:
    before = as_json("versions", "-C", tiny_project)["versions"]
    command = [sys.executable, "-m", "rec_ray.cli", "run", "-C", str(tiny_project), "--set", "train.epochs=500"]
    running = subprocess.Popen(
        [*command, "--set", "train.patience=500"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    try:
        assert running.stderr is not None
        said = []
        for line in running.stderr:
            said.append(line)
            if "train ..." in line:
                break
        time.sleep(5)
        running.send_signal(interrupt)
        said += running.stderr.readlines()
        assert running.wait(60) == code, "".join(said)[-4000:]
    finally:
        running.kill()
    assert "nothing was made live" in said[-1]
    assert as_json("versions", "-C", tiny_project)["versions"] == before


@needs_shared
def test_random_data_do_not_pass_for_learning(tmp_path: Path) -> None:
    folder = tmp_path / "rh"
    rec_ray("init", folder, "--from", SHARED / "rh-products")
    shown = rec_ray("run", "-C", folder, "--set", "train.epochs=4")
    assert "does not beat popularity" in shown.stdout
    assert as_json("versions", "-C", folder)["versions"][0]["state"] == "live"
    refused = rec_ray("train", "-C", folder, "--set", "train.epochs=4", "--set", "model.historie=mean", code=2)
    assert "did you mean model.history" in refused.stderr


@needs_shared
def test_beauty_is_learned(tmp_path: Path) -> None:
    folder = tmp_path / "beauty"
    rec_ray("init", folder, "--from", SHARED / "beauty")
    done = as_json("train", "-C", folder, "--set", "train.epochs=2", "--set", "train.refit=off")
    metrics = done["evaluation"]["metrics"]
    assert metrics["model"]["recall@10"] >= 2.5 * metrics["popularity"]["recall@10"]
    assert as_json("versions", "-C", folder)["versions"][0]["state"] == "stored"
