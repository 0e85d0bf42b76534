"""Terminal output: comparisons, names beside ids, and markup in texts of a shop as plain text."""

import io
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from rec_ray.config import FeastSettings, FeatureSettings, Settings
from rec_ray.contracts import Evaluation, EvaluationFacts
from rec_ray.reports.terminal import print_evaluation, print_items, print_rows, print_versions

MARKUP = "[red]Cup[/red] :smile: [/] \\[x]"
"""No part of it is an instruction; `[/]` alone would be an error in markup."""


@pytest.fixture
def said():
    """Print with a function and return what stands on a plain terminal of 200 columns."""

    def run(show, *arguments, **more):
        console = Console(file=io.StringIO(), width=200, force_terminal=False)
        show(console, *arguments, **more)
        return console.file.getvalue()

    return run


def evaluation(model, popularity, **facts):
    metrics = {
        name: {"recall@10": value, "ndcg@10": value / 2, "mrr": 0.25}
        for name, value in (("model", model), ("popularity", popularity))
    }
    intervals = {"model": {"recall@10": (model - 0.01, model + 0.01)}}
    differences = {"popularity": {"recall@10": (model - popularity - 0.01, model - popularity + 0.01)}}
    return Evaluation(metrics, 1234, 2345, intervals, EvaluationFacts(**facts), differences)


def test_metrics_stand_in_a_row_for_each_method_and_what_is_no_target_is_said(said):
    text = said(print_evaluation, evaluation(0.05, 0.07, seen_targets=7, unknown_targets=0))
    lines = text.splitlines()
    (model,) = (line for line in lines if "0.2500" in line and line.split()[0] == "model")
    (popularity,) = (line for line in lines if "0.2500" in line and line.split()[0] == "popularity")
    assert model.split() == ["model", "0.0500", ".0400", ".0600", "0.0250", "0.2500"]
    assert popularity.split() == ["popularity", "0.0700", "0.0350", "0.2500", "worse"]
    words = " ".join(text.split())
    assert words.startswith("Held-out events of 1,234 users, all items ranked")
    assert "The model does not beat popularity" in words
    assert "7 held-out events the user had already seen are no targets." in words
    assert "not known before the test" not in text


@pytest.mark.parametrize(
    ("model", "words"), [(0.0700, "no different"), (0.0795, "no different"), (0.0905, "better"), (0.05, "worse")]
)
def test_a_difference_is_only_said_where_it_is_more_than_chance(said, model, words):
    lines = said(print_evaluation, evaluation(model, 0.07)).splitlines()
    (row,) = (line for line in lines if line.split()[:1] == ["popularity"])
    assert row.rstrip().endswith(words)


def test_on_a_narrow_terminal_a_row_stays_one_line():
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    print_evaluation(console, evaluation(0.05, 0.07))
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert sum("0.0700" in line and "popularity" in line and "worse" in line for line in lines) == 1


def test_no_metrics_are_said(said):
    assert "there are no metrics" in said(print_evaluation, Evaluation({}, 0, 0))


def test_text_of_a_shop_is_shown_as_it_is(said):
    text = said(print_items, f"Items like {MARKUP}", ["[b]1", "2"], [0.5, 0.25], {"[b]1": MARKUP})
    rows = [line for line in text.splitlines() if "0.500" in line or "0.250" in line]
    cells = [[cell.strip() for cell in row.split("  ") if cell.strip()] for row in rows]
    assert cells == [["1", "[b]1", MARKUP, "0.500"], ["2", "2", "0.250"]]
    assert text.splitlines()[0].strip() == f"Items like {MARKUP}"


def test_addresses_and_runs_are_shown_as_they_are(said):
    assert "/data/[bold]/x :cat:" in said(print_rows, "Where [b]", {"model": "/data/[bold]/x :cat:", "a_b": 1})
    text = said(print_versions, [{"version": "3", "state": "live", "run_id": "[red]nightly", "metrics": None}])
    assert "[red]nightly" in text
    assert "No version yet" in said(print_versions, [])
    figures = {"model": {"recall@10": 0.25, "ndcg@10": 0.125}, "item_knn": {"recall@10": 0.5, "ndcg@10": 0.3}}
    text = said(
        print_versions, [{"version": "3", "state": "published", "metrics": figures | {"live": figures["item_knn"]}}]
    )
    assert "was live" in text and "0.2500" in text and "item-kNN 0.5000 0.3000" in text


def test_sequences_of_a_terminal_in_names_are_written_out(said):
    """A product name must not clear the screen or change its title."""
    name = "\x1b]0;owned\x07\x1b[2Jcup\x9b31m"
    text = said(print_items, name, ["1"], [0.5], {"1": name}) + said(print_rows, name, {name: name})
    assert not set(text) & {"\x1b", "\x07", "\x9b"} and "\\x1b]0;owned\\x07\\x1b[2Jcup" in text


def test_without_names_and_scores_there_are_no_columns_for_them(said):
    text = said(print_items, "Some", ["1"], [], {})
    assert "Item" in text
    assert "Name" not in text
    assert "Score" not in text


@pytest.mark.usefixtures("processes")
def test_names_come_from_a_repository_with_numbers_as_ids_and_relative_files(make_repo, tmp_path, monkeypatch):
    """The command may be given in any folder; ids are text in the answer and numbers in the shop."""
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.types import Int64, String

    from rec_ray.cli.lookup import read_item_names

    repo = tmp_path / "repo"
    repo.mkdir()
    times = pa.array([0, 10, 0], pa.timestamp("s", "UTC")).cast(pa.timestamp("us", "UTC"))
    columns = {"article": [1, 1, 30], "label": ["old", MARKUP, None], "event_timestamp": times}
    pq.write_table(pa.table(columns), repo / "labels.parquet")
    item = Entity(name="item", join_keys=["article"], value_type=ValueType.INT64)
    view = FeatureView(
        name="labels",
        entities=[item],
        ttl=timedelta(0),
        schema=[Field(name="article", dtype=Int64), Field(name="label", dtype=String)],
        source=FileSource(name="labels_file", path="labels.parquet", timestamp_field="event_timestamp"),
    )
    here = Path.cwd()
    monkeypatch.chdir(repo)
    store = make_repo(repo, [item, view, FeatureService(name="item_service", features=[view])])
    monkeypatch.chdir(here)
    settings = Settings(feast=FeastSettings(item_key="article"), features=FeatureSettings(item_name="label"))
    assert read_item_names(store, settings, ["30", "1", "77"]) == {"1": MARKUP}
    assert read_item_names(store, settings, []) == {}
    assert read_item_names(store, settings.model_copy(update={"features": FeatureSettings()}), ["1"]) == {}
