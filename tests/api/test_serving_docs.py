"""docs/serving.md is true: its Python runs against a published version, with plain Feast and the Python API."""

import re
import shutil
from pathlib import Path

import pytest
from stored_versions import write_feast_repo

from rec_ray.config import Settings
from rec_ray.pipeline import run_publishing, run_rollback
from rec_ray.storage.live_pointer import read_live
from rec_ray.storage.object_store import open_storage

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.usefixtures("local_ray")]


def test_the_python_of_the_page_runs(fitted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_feast_repo(tmp_path / "feature_repo", {"type": "sqlite", "path": "online_store.db"})
    shutil.copytree(fitted.store, tmp_path / "store")
    storage = open_storage(str(tmp_path / "store"))
    (tmp_path / "store/two-tower/live.json").unlink()
    settings = Settings.model_validate(
        {
            "feast": {"repo": str(tmp_path / "feature_repo")},
            "storage": {"url": str(tmp_path / "store")},
            "database": {"url": f"sqlite:///{tmp_path}/versions.db"},
        }
    )
    run_publishing(settings, "1")
    assert read_live(storage) == "1", "publishing names the live version in the store"
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 4
    for block in blocks:
        exec(compile(block, "serving.md", "exec"), names)
    stored = names["rec"].recommend(user_id="u3", k=20)
    assert (names["version"], names["item_ids"]) == ("1", stored.item_ids)
    assert list(names["scores"]) == stored.item_ids
    assert list(names["scores"].values()) == pytest.approx(stored.scores, abs=1e-5)
    assert names["read_list"]("a stranger") == (None, [])
    assert names["found"].version == "1" and "i9" not in names["found"].item_ids
    assert names["same"].recommend(history=["i3"]) == names["rec"].recommend(history=["i3"])

    fitted.model.save(str(tmp_path / "store"))
    run_publishing(settings, "2")
    assert read_live(storage) == "2"
    run_rollback(settings, "1")
    assert read_live(storage) == "1" and names["rec"].is_live()
