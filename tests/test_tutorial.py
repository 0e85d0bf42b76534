"""The tutorial and its notebook are one text, and their Python runs."""

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
MAKER = runpy.run_path(str(ROOT / "docs" / "make_notebook.py"), run_name="maker")


def test_the_notebook_is_the_tutorial():
    notebook = (ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8")
    assert notebook == MAKER["as_notebook"](PAGE), "run: python docs/make_notebook.py"
    code = ["".join(cell["source"]) + "\n" for cell in json.loads(notebook)["cells"] if cell["cell_type"] == "code"]
    assert code == MAKER["python_blocks"](PAGE) and len(code) >= 5


@pytest.mark.usefixtures("processes")
def test_its_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in MAKER["python_blocks"](PAGE):
        exec(compile(block, "tutorial.md", "exec"), names)
    metrics = names["model"].evaluate()
    assert metrics.beats_popularity
    assert {each.partition("-")[0] for each in names["found"].item_ids} == {"books"}
    assert (tmp_path / "tea-shop" / "two-tower" / "live.json").exists() and (tmp_path / "products.csv").exists()
    assert "popularity" in capsys.readouterr().out
