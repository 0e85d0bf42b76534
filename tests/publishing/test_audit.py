"""The audit after a publication: features of the users of the candidates, online and offline, as checks."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from rec_ray.candidate_store.manifest import CandidatesManifest, Part, write_manifest
from rec_ray.cli.main import main
from rec_ray.config import Settings
from rec_ray.night_checks import check_online
from rec_ray.runs.check_records import read_checks
from rec_ray.runs.context import RunContext
from rec_ray.runs.stores import open_object_store, open_version_database
from rec_ray.schema import USER_EMBEDDINGS
from rec_ray.storage.model_store import candidates_folder
from rec_ray.versions.registry import VersionRow

NOW = datetime(2024, 6, 1, tzinfo=UTC)
USERS = [f"u{number}" for number in range(30)]
AGES = [20.0 + number for number in range(30)]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory, make_repo: Callable[..., Any]) -> RunContext:
    """A run that published version 1, with a view of users that is not materialised yet."""
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64

    folder = tmp_path_factory.mktemp("audit")
    times = pa.array([NOW - timedelta(days=1)] * 30, pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"user_id": USERS, "age": AGES, "event_timestamp": times}), folder / "users.parquet")
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING)
    source = FileSource(name="users", path=str(folder / "users.parquet"), timestamp_field="event_timestamp")
    schema = [Field(name="age", dtype=Float64)]
    view = FeatureView(name="profile", entities=[user], ttl=timedelta(0), schema=schema, source=source)
    store = make_repo(folder / "repo", [user, view, FeatureService(name="user_service", features=[view])])
    given = {"feast": {"repo": str(folder / "repo")}, "storage": {"url": str(folder / "store")}}
    given |= {"database": {"url": f"sqlite:///{folder / 'v.db'}"}}
    settings = Settings.model_validate(given | {"features": {"user": {"age": {"kind": "numeric"}}}})
    storage, prefix = open_object_store(settings), candidates_folder("1")
    storage.filesystem.create_dir(storage.path(prefix, "user_embeddings"), recursive=True)
    rows = pa.table([USERS, [[1.0, 0.0]] * 30], schema=USER_EMBEDDINGS)
    pq.write_table(rows, storage.path(prefix, "user_embeddings", "part.parquet"), filesystem=storage.filesystem)
    part = Part("part.parquet", 30, 1, "0" * 64)
    parts = {"user_embeddings": (part,), "recommendations": (part,), "item_embeddings": ()}
    write_manifest(storage, prefix, CandidatesManifest("1", parts, users=30))
    return RunContext(settings, storage, open_version_database(settings), store, "run", NOW, {})


def audit(context: RunContext) -> dict[str, tuple[str, float | None]]:
    check_online(context, "1")
    return {each.name: (each.verdict, each.measured) for each in read_checks(context.storage, "1")}


def write(context: RunContext, ages: list[float]) -> None:
    frame = pd.DataFrame({"user_id": USERS, "age": ages})
    frame["event_timestamp"] = pd.Timestamp.now(tz="UTC")
    context.store.write_to_online_store("profile", frame)


def test_features_are_compared_after_a_publication(context: RunContext, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert audit(context) == {}
    assert any("view profile has no row in the online store" in message for message in caplog.messages)
    write(context, AGES)
    assert audit(context) == {"skew.profile.age": ("passed", 0.0)}
    write(context, [AGES[0] + 1, *AGES[1:]])
    assert audit(context) == {"skew.profile.age": ("passed", 0.0333)}, "one row may have arrived meanwhile"
    write(context, [age * 2 for age in AGES])
    assert audit(context) == {"skew.profile.age": ("warned", 1.0)}
    said = "30 of 30 values of 'age' in view 'profile' differ online: by the factor 2"
    assert any(said in message for message in caplog.messages)


def test_the_command_names_the_difference_and_ends_with_8(context: RunContext, tmp_path: Path, capsys: Any) -> None:
    values = context.settings.model_dump(mode="json", include={"feast", "features"})
    values["storage"] = {"url": context.settings.storage.url}
    values["database"] = {"url": context.settings.database.url}
    (tmp_path / "rec_ray.yaml").write_text(yaml.safe_dump(values))
    assert main(["audit", "-C", str(tmp_path)]) == 4
    assert "no version is live" in capsys.readouterr().err
    context.database.publish(VersionRow("1", "run"))
    write(context, [age + 7 for age in AGES])
    assert main(["audit", "-C", str(tmp_path)]) == 8
    assert "DIFFERS 30 of 30 values of 'age' in view 'profile' differ online: by +7 online" in capsys.readouterr().out
    write(context, AGES)
    assert main(["audit", "-C", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fields"][0]["differ"] == 0


def test_a_failure_of_the_audit_ends_no_run(context: RunContext, caplog: pytest.LogCaptureFixture) -> None:
    check_online(context, "2")
    assert any("features in the online store are not compared" in message for message in caplog.messages)
