"""Checks around the steps: profiles and verdicts kept beside the version, refusals before the first push."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rec_ray.config import Settings
from rec_ray.contracts import Candidates
from rec_ray.errors import GateError
from rec_ray.night_checks import check_data, check_lists, require_lists, worse
from rec_ray.retrieval.profiles.checks import REFUSED, WARNED, Check
from rec_ray.retrieval.profiles.data_profile import DataProfile
from rec_ray.retrieval.profiles.feature_profile import FeatureProfile
from rec_ray.retrieval.profiles.list_profile import LISTS, ListProfile
from rec_ray.runs.check_records import read_checks, read_profile, record_checks, write_profile
from rec_ray.runs.context import RunContext
from rec_ray.runs.stores import open_object_store, open_version_database
from rec_ray.storage.model_store import candidates_folder
from rec_ray.versions.registry import VersionRow

NOW = datetime(2024, 6, 2, 2, tzinfo=UTC)


def profile(as_of: datetime, *, kept: int = 5000, nulls: int = 0) -> DataProfile:
    feature = FeatureProfile(400, nulls, Counter({3: 400 - nulls}), ordered=True)
    second = int(as_of.timestamp())
    return DataProfile(as_of=second, kept=kept, oldest=1, newest=second - 60, item_features={"price": feature})


def context_of(tmp_path: Path, **checks: Any) -> RunContext:
    """A run with a live version 1, whose data had a price for every item."""
    given = {"storage": {"url": str(tmp_path / "store")}, "database": {"url": f"sqlite:///{tmp_path / 'v.db'}"}}
    settings = Settings.model_validate({**given, "checks": checks})
    storage, database = open_object_store(settings), open_version_database(settings)
    database.migrate()
    if database.live() is None:
        assert (database.reserve("first"), database.reserve("second")) == ("1", "2")
        database.publish(VersionRow("1", "first"))
        write_profile(storage, "1", profile(NOW - timedelta(days=1)))
    store: Any = None
    return RunContext(settings, storage, database, store, "second", NOW, {})


def data_of(context: RunContext, found: DataProfile) -> Any:
    context.storage.write_bytes("runs/second/data/profile.json", found.to_json())
    return SimpleNamespace(profile="runs/second/data/profile.json")


def test_good_data_pass_and_their_profile_and_checks_are_kept(tmp_path: Path) -> None:
    context = context_of(tmp_path)
    check_data(context, data_of(context, profile(NOW)), "2")
    kept = read_profile(context.storage, "2")
    assert kept is not None and kept.kept == 5000
    checks = {each.name: each for each in read_checks(context.storage, "2")}
    assert checks["data.nulls.item.price"] == Check(
        "data.nulls.item.price", 0.0, 0.2, "passed", "0% of the values of item feature 'price' are missing, 0% before"
    )
    assert {each.verdict for each in checks.values()} == {"passed"}
    assert "check_data" in context.seconds


def test_bad_data_are_refused_with_reason_and_remedy(tmp_path: Path) -> None:
    context = context_of(tmp_path)
    with pytest.raises(GateError) as caught:
        check_data(context, data_of(context, profile(NOW, nulls=400)), "2")
    assert "100% of the values of item feature 'price' are missing, 0% before" in str(caught.value)
    assert "resume with --set checks.data=warn" in str(caught.value)
    assert caught.value.exit_code == 5
    (refused,) = [each for each in context.database.reservations() if each.version == "2"]
    assert refused.state == "refused" and "'price' are missing" in str(refused.reason)
    assert read_profile(context.storage, "2") is not None, "what was refused can be looked at"


@pytest.mark.parametrize(("checks", "publishes"), [({"data": "warn"}, True), ({}, False)])
def test_a_warning_lets_the_run_go_on(tmp_path: Path, caplog: Any, checks: dict[str, str], publishes: bool) -> None:
    context = context_of(tmp_path, **checks)
    check_data(context, data_of(context, profile(NOW, nulls=400)), "2", publishes=publishes)
    assert WARNED in {each.verdict for each in read_checks(context.storage, "2")}
    assert any("data.nulls.item.price warned" in message for message in caplog.messages)


def test_checks_that_are_off_compare_nothing(tmp_path: Path) -> None:
    context = context_of(tmp_path, data="off")
    check_data(context, data_of(context, profile(NOW, kept=1)), "2")
    assert read_checks(context.storage, "2") == []


def test_a_damaged_profile_of_the_live_version_is_said_and_stops_nothing(tmp_path: Path, caplog: Any) -> None:
    context = context_of(tmp_path)
    context.storage.write_bytes("two-tower/1/profile.json", b"{")
    check_data(context, data_of(context, profile(NOW)), "2")
    assert any("not compared with those of the live version 1" in message for message in caplog.messages)


def test_lists_are_compared_before_the_push(tmp_path: Path) -> None:
    context = context_of(tmp_path)
    for version, users in (("1", 1000), ("2", 500)):
        lists = ListProfile(users, items=100, coverage=0.5, gini=0.4)
        context.storage.write_bytes(f"{candidates_folder(version)}/{LISTS}", lists.to_json())
    candidates = Candidates("2", candidates_folder("2"), 100, 500, 20)
    checks = check_lists(context, candidates, "2")
    assert worse("passed", checks) == REFUSED and worse("refused", []) == "refused"
    with pytest.raises(GateError, match="500 users have a list, 1,000 in the live version: nothing was pushed"):
        require_lists(context, "2", checks)
    context = context_of(tmp_path, lists="warn")
    require_lists(context, "2", check_lists(context, candidates, "2"))


@pytest.mark.parametrize(("k", "verdict"), [(100, "refused"), (50, "warned")])
def test_another_setting_of_the_lists_only_warns(tmp_path: Path, k: int, verdict: str) -> None:
    context = context_of(tmp_path)
    for version, short in (("1", 0), ("2", 500)):
        lists = ListProfile(1000, short=short, items=100, coverage=0.5, gini=0.4)
        context.storage.write_bytes(f"{candidates_folder(version)}/{LISTS}", lists.to_json())
    metadata = json.dumps({"settings": {"candidates": {"k": k, "of_another_program": 1}}}).encode()
    context.storage.write_bytes("two-tower/1/metadata.json", metadata)
    files = {"metadata.json": {"sha256": hashlib.sha256(metadata).hexdigest(), "bytes": len(metadata)}}
    manifest = {"format_version": 1, "version": "1", "files": files}
    context.storage.write_bytes("two-tower/1/manifest.json", json.dumps(manifest).encode())
    checks = check_lists(context, Candidates("2", candidates_folder("2"), 100, 500, 100), "2")
    assert worse("passed", checks) == verdict


def test_groups_are_recorded_beside_each_other(tmp_path: Path) -> None:
    storage = context_of(tmp_path).storage
    one, two = Check("data.rows", 1.0, 0.8, "passed", "a"), Check("lists.users", float("nan"), None, "warned", "b")
    record_checks(storage, "2", ["data"], [one])
    record_checks(storage, "2", ["lists"], [two])
    record_checks(storage, "2", ["data"], [])
    assert [each.name for each in read_checks(storage, "2")] == ["lists.users"]
    assert json.loads(storage.read_bytes("two-tower/2/checks.json"))["checks"][0]["measured"] is None


def test_the_row_of_a_published_version_has_its_checks(tmp_path: Path) -> None:
    context = context_of(tmp_path)
    checks = [{"name": "data.rows", "measured": 1.0, "limit": 0.8, "verdict": "passed", "said": "a"}]
    context.database.publish(VersionRow("2", "second", checks=checks))
    row = context.database.get("2")
    assert row is not None and row.checks == checks
    first = context.database.get("1")
    assert first is not None and first.checks is None
