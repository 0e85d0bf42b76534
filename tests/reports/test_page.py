"""What the page says and shows, without a browser: figures, plots, names as text, and nothing from elsewhere."""

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from rec_ray.contracts import Evaluation
from rec_ray.errors import DataError
from rec_ray.reports.comparison import find_interval, find_value
from rec_ray.reports.page.facts import ReportFacts
from rec_ray.reports.page.page import render_report

EVIL = "<script>alert(1)</script>"
PLOTS = {
    "recall-10",
    "ndcg-10",
    "curves",
    "segments",
    "validation_ndcg",
    "loss",
    "scores",
    "popularity",
    "map",
    "seconds",
}


class Seen(HTMLParser):
    """Elements, their attributes, and the text of the page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page(facts):
    return render_report(ReportFacts.from_json(facts.to_json()))


@pytest.fixture(scope="module")
def seen(page):
    return Seen(page)


def test_every_plot_is_there(page, seen):
    assert {value for name, value in seen.attributes if name == "id" and value.startswith("plot-")} == {
        f"plot-{name}" for name in PLOTS
    }
    assert seen.tags.count("svg") == len(PLOTS)
    svgs = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    for svg in svgs:
        root = ElementTree.fromstring(svg)
        assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 1
    assert "#0" + "0000f" not in page and not re.search(r"#0[0-9a-c]0[0-9a-c]0f", page), "colours are the page's"


def test_a_reference_in_a_plot_points_into_the_same_plot(page):
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ids = set(re.findall(r' id="([^"]+)"', svg))
        used = set(re.findall(r'(?:url\(#|href="#)([\w.-]+)', svg))
        assert used == ids
    everything = re.findall(r' id="([^"]+)"', page)
    assert len(everything) == len(set(everything))


def test_nothing_is_run_and_nothing_is_loaded(page, seen):
    assert "script" not in seen.tags and "link" not in seen.tags and "img" not in seen.tags
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    loaded = [value for name, value in seen.attributes if name in ("src", "href", "xlink:href", "action", "data")]
    assert all(value.startswith("#") for value in loaded)
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    assert "default-src 'none'" in page


def test_names_are_text_whatever_they_hold(page, seen):
    assert EVIL not in page
    text = "".join(seen.text)
    # As a name, a category, a user and a value of a feature.
    assert text.count(EVIL) > 4
    assert f"{EVIL} no. 3 ({EVIL})" in text, "under the pointer on the map"
    assert "a $\\frac$ & <b>bold</b> name" in text
    assert "name\N{REPLACEMENT CHARACTER}" in text, "XML has no word for a bell"


def test_figures_stand_with_their_intervals(seen):
    text = " ".join("".join(seen.text).split())
    assert "The model's Recall@10 is 3.9 times that of popularity." in text
    assert "The model is better than the live version 6 (Recall@10 0.3100 against 0.2700" in text
    assert "0.3100" in text and "0.2980 – 0.3220" in text
    assert "+0.0280 to +0.0520" in text
    assert "gate: passed" in text
    assert "41,000" in text and "2023-11-14 22:13" in text
    assert "1 of 3 held-out items" in text or "0 of 3 held-out items" in text
    assert "**********" in text


def test_a_refused_model_says_why(facts):
    reason = "the model's NDCG@10 is 0.1000, below popularity's 0.2000"
    refused = dataclasses.replace(facts, gate="refused", gate_reasons=[reason], refit="continue")
    text = " ".join("".join(Seen(render_report(refused)).text).split())
    assert "gate: refused" in text and f"Gate: {reason}." in text
    assert "before its refit" in text


def test_suspicious_findings_about_the_data_are_shown():
    noted = ReportFacts(version="3", notes=["user '<bot>' has 94% of the events"])
    seen = Seen(render_report(noted))
    assert "Data: user '<bot>' has 94% of the events." in "".join(seen.text)


def test_what_was_not_measured_is_left_out(facts):
    bare = ReportFacts(version="3")
    seen = Seen(render_report(bare))
    assert "There are no metrics" in "".join(seen.text)
    assert "svg" not in seen.tags
    # What an older version keeps: metrics without intervals, no examples, no map.
    model = {"recall@10": 0.2, "ndcg@10": 0.1, "mrr": 0.1}
    older = Evaluation({"model": model, "popularity": {**model, "recall@10": 0.1}}, 0, 0)
    seen = Seen(render_report(ReportFacts(version="3", evaluation=older)))
    assert "The model's Recall@10 is 2.0 times that of popularity." in "".join(seen.text)
    assert seen.tags.count("svg") == 2


def test_facts_come_back_as_they_were_and_another_format_is_refused(facts, page):
    again = ReportFacts.from_json(facts.to_json())
    assert dataclasses.replace(again, gate_reasons=[]) == dataclasses.replace(facts, gate_reasons=[])
    assert render_report(ReportFacts.from_json(again.to_json())) == page
    assert ReportFacts.from_json(dataclasses.replace(facts, seconds={"a": float("nan")}).to_json()).seconds["a"] is None
    unmeasured = Evaluation({"model": {"recall@10": float("nan")}}, 5, 7, {"model": {"recall@10": (float("nan"), 1.0)}})
    stored = dataclasses.replace(facts, evaluation=unmeasured).to_json()
    assert json.loads(stored)["evaluation"]["metrics"] == {"model": {"recall@10": None}}
    read = ReportFacts.from_json(stored).evaluation
    assert read is not None and math.isnan(read.metrics["model"]["recall@10"]) and read.facts.live_version is None
    assert find_value(read, "model", "recall@10") is None and find_interval(read, "model", "recall@10") is None
    with pytest.raises(DataError, match="format 2"):
        ReportFacts.from_json(b'{"format_version": 2, "version": "1"}')
    for damaged in (
        b"[]",
        b'{"format_version": 1}',
        b'{"format_version": 1, "version": "1", "epochs": [{"epoch": "a"}]}',
    ):
        with pytest.raises(DataError, match="cannot be read"):
            ReportFacts.from_json(damaged)


def test_a_report_of_an_earlier_program_is_rendered():
    """Keys that are missing or unknown, dictionaries that are empty, and null for what was not finite."""
    stored = {
        "format_version": 1,
        "version": "3",
        "evaluation": {
            "metrics": {"model": {"recall@10": 0.2, "ndcg@10": None}, "popularity": {"recall@10": 0.1}, "live": {}},
            "users": 5,
            "targets": 7,
            "facts": {"targets": 7, "asked": 3, "live_version": "2"},
            "distributions": {},
        },
        "item_map": {},
        "epochs": [],
        "of_a_later_program": 1,
    }
    text = " ".join("".join(Seen(render_report(ReportFacts.from_json(json.dumps(stored).encode()))).text).split())
    assert "2.0 times that of popularity" in text and "the live version 2" in text and "nan" not in text
