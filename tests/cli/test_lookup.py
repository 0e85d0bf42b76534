"""`rec-ray recommend` and `similar` answer from the online store and the stored vectors, without Ray and torch."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from stored_versions import write_version

from rec_ray.candidate_store.manifest import ITEM_FOLDER, read_manifest, read_parts
from rec_ray.cli.main import main
from rec_ray.config.loading import load_settings
from rec_ray.feature_store.push_targets import find_push_target, push_frame
from rec_ray.feature_store.repository import open_store
from rec_ray.runs.stores import open_object_store, open_version_database
from rec_ray.schema import ITEM_IDS, SCORES, USER_ID
from rec_ray.versions.registry import VersionRow

ITEMS = [f"i{number}" for number in range(30)]


@pytest.fixture(scope="module")
def project(make_project: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 is live; the online store has the list i2, i1 of user u1."""
    events = {
        "user_id": ["u1", "u2"],
        "item_id": ["i1", "i2"],
        "event_timestamp": [datetime(2024, 1, 1, tzinfo=UTC)] * 2,
    }
    folder: Path = make_project(tmp_path_factory.mktemp("lookup"), interactions=events)
    settings = load_settings(folder / "rec_ray.yaml", environ={})
    write_version(open_object_store(settings), "1", ["u1"], ITEMS)
    database = open_version_database(settings)
    database.migrate()
    database.publish(VersionRow("1", "a run"))
    store = open_store(settings.feast.repo)
    target = find_push_target(store, settings.publish.recommendation_push_source, USER_ID, [ITEM_IDS, SCORES])
    row = pa.table({USER_ID: ["u1"], ITEM_IDS: [["i2", "i1"]], SCORES: pa.array([[0.5, 0.25]], pa.list_(pa.float32()))})
    store.push(target.source, push_frame(row, target, "1", datetime.now(UTC)))
    return folder


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_list_is_read_from_the_online_store(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["u1"], ["--any"]):
        found = answer(capsys, "recommend", *words, "-C", str(project))
        assert (found["version"], found["item_ids"], found["scores"]) == ("1", ["i2", "i1"], [0.5, 0.25])
    assert main(["recommend", "nobody", "-C", str(project)]) == 4
    assert "no recommendations for user 'nobody'" in capsys.readouterr().err


def test_similar_items_have_the_highest_products_and_not_the_item_itself(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = open_object_store(load_settings(project / "rec_ray.yaml", environ={}))
    table = read_parts(storage, "two-tower/1/candidates", read_manifest(storage, "two-tower/1/candidates"), ITEM_FOLDER)
    ids = table["item_id"].to_pylist()
    vectors = np.array(table["embedding"].to_pylist(), np.float32)
    products = vectors @ vectors[ids.index("i3")]
    expected = [ids[place] for place in np.argsort(-products, kind="stable") if ids[place] != "i3"]
    for count in (5, 100):
        found = answer(capsys, "similar", "i3", "-n", str(count), "-C", str(project))
        assert found["item_ids"] == expected[:count]
    assert main(["similar", "nothing", "-C", str(project)]) == 4


def test_look_ups_import_neither_ray_nor_torch_nor_other_online_stores(project: Path) -> None:
    code = (
        "import sys; from rec_ray.cli.main import main;"
        "codes = [main(['recommend', 'u1', '-C', '.']), main(['similar', 'i3', '-C', '.'])];"
        "print(codes, sorted({'torch', 'ray', 'faiss', 'psycopg', 'redis', 'alembic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[0, 0] []"
    assert done.stderr == ""
