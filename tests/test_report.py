"""What people read: honest sentences, names beside ids, and text of a shop shown as it is."""

import io
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from rec_ray.config import FeastSettings, FeatureSettings, Settings
from rec_ray.contracts import Evaluation
from rec_ray.report import print_evaluation, print_items, print_rows, print_versions, verdict

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


def evaluation(model, popularity, interval=None, **facts):
    metrics = {
        name: {"recall@10": value, "ndcg@10": value / 2, "mrr": 0.25}
        for name, value in (("model", model), ("popularity", popularity))
    }
    intervals = {"model": {"recall@10": interval}} if interval else {}
    return Evaluation(metrics, 1234, 2345, intervals, facts)


@pytest.mark.parametrize(
    "given, sentence",
    [
        ((0.3, 0.1, (0.28, 0.32)), "The model's Recall@10 is 3.0 times popularity's."),
        ((0.3, 0.1), "The model's Recall@10 is 3.0 times popularity's."),
        ((0.3, 0.0), "The model's Recall@10 is where popularity finds nothing."),
        (
            (0.05, 0.06),
            "The model does not beat popularity (Recall@10 0.0500 against 0.0600): "
            "these data hold little that tells users apart.",
        ),
        (
            (0.05, 0.05),
            "The model does not beat popularity (Recall@10 0.0500 against 0.0500): "
            "these data hold little that tells users apart.",
        ),
        (
            (0.06, 0.05, (0.045, 0.075)),
            "The model does not beat popularity by more than chance "
            "(Recall@10 0.0600 against 0.0500, 95 % interval 0.0450 to 0.0750).",
        ),
    ],
)
def test_the_verdict_is_honest(given, sentence):
    assert verdict(evaluation(*given)) == sentence


def test_metrics_stand_in_a_row_for_each_method_and_what_is_no_target_is_said(said):
    text = said(print_evaluation, evaluation(0.05, 0.06, seen_targets=7, unknown_targets=0))
    lines = text.splitlines()
    (model,) = (line for line in lines if "model" in line and "0.2500" in line)
    (popularity,) = (line for line in lines if "popularity" in line and "0.2500" in line)
    assert [cell.strip() for cell in model.strip("│").split("│")] == ["model", "0.0500", "0.0250", "0.2500"]
    assert [cell.strip() for cell in popularity.strip("│").split("│")] == ["popularity", "0.0600", "0.0300", "0.2500"]
    words = " ".join(text.split())
    assert words.startswith("Held-out events of 1,234 users, all items ranked")
    assert "The model does not beat popularity" in words
    assert "7 held-out events the user had already seen are no targets." in words
    assert "not known before the test" not in text


def test_no_metrics_are_said(said):
    assert "there are no metrics" in said(print_evaluation, Evaluation({}, 0, 0))


def test_text_of_a_shop_is_shown_as_it_is(said):
    text = said(print_items, f"Items like {MARKUP}", ["[b]1", "2"], [0.5, 0.25], {"[b]1": MARKUP})
    rows = [line for line in text.splitlines() if "0.500" in line or "0.250" in line]
    cells = [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]
    assert cells == [["1", "[b]1", MARKUP, "0.500"], ["2", "2", "", "0.250"]]
    assert text.splitlines()[0].strip() == f"Items like {MARKUP}"


def test_addresses_and_runs_are_shown_as_they_are(said):
    assert "/data/[bold]/x :cat:" in said(print_rows, "Where [b]", {"model": "/data/[bold]/x :cat:", "a_b": 1})
    text = said(print_versions, [{"version": "3", "state": "live", "run_id": "[red]nightly", "metrics": None}])
    assert "[red]nightly" in text
    assert "rec-ray run" in said(print_versions, [])


def test_without_names_and_scores_there_are_no_columns_for_them(said):
    text = said(print_items, "Some", ["1"], [], {})
    assert "Item" in text
    assert "Name" not in text
    assert "Score" not in text


@pytest.mark.integration
def test_names_come_from_a_repository_with_numbers_as_ids_and_relative_files(make_repo, tmp_path, monkeypatch):
    """The command may be given in any folder; ids are text in the answer and numbers in the shop."""
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.types import Int64, String

    from rec_ray.answers import _names

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
    assert _names(store, settings, ["30", "1", "77"]) == {"1": MARKUP}
    assert _names(store, settings, []) == {}
    assert _names(store, settings.model_copy(update={"features": FeatureSettings()}), ["1"]) == {}
