"""The whole line on S3, PostgreSQL and a SQL registry: the same project as on folders, other addresses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from servers import PostgreSQL, SeaweedFS, environment_of

from rec_ray.cli.main import main
from rec_ray.sample.feature_repo import apply_feature_repo

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.usefixtures("local_ray")]


def test_the_line_runs_on_servers_and_goes_back(
    seaweedfs: SeaweedFS,
    postgresql: PostgreSQL,
    tmp_path: Path,
    make_project: Callable[..., Path],
    tiny_tables: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = postgresql.make_database("whole_line")
    project = make_project(
        tmp_path,
        **tiny_tables,
        settings={
            "model": {"history": "mean", "embedding_size": 16},
            "train": {"epochs": 1},
            "candidates": {"k": 20},
            "evaluation": {"gate": "off"},
        },
    )
    file = project / "feature_repo" / "feature_store.yaml"
    feast = yaml.safe_load(file.read_text())
    feast["online_store"] = postgresql.online_store("whole_line")
    feast["registry"] = postgresql.registry("whole_line")
    file.write_text(yaml.safe_dump(feast))
    apply_feature_repo(project / "feature_repo")
    servers = environment_of([seaweedfs, postgresql])
    servers |= {"REC_RAY__STORAGE__URL": f"s3://{seaweedfs.bucket}/whole line", "REC_RAY__DATABASE__URL": url}
    for name, value in servers.items():
        monkeypatch.setenv(name, value)

    def said(*words: str) -> Any:
        assert main([*words, "-C", str(project), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    report = said("run", "--run-id", "first")
    assert report["version"] == "1" and report["where"]["model"] == "s3://rec-ray/whole line/two-tower/1"
    assert report["counts"]["rows pushed to user_items_push_source"] == report["counts"]["users"]
    # Nothing was written to this machine's disk instead.
    assert not (project / "store").exists() and not (project / "versions.db").exists()
    keys = [info.path for info in seaweedfs.filesystem().get_file_info(_all(f"{seaweedfs.bucket}/whole line"))]
    for part in ("two-tower/1/weights.safetensors", "two-tower/1/candidates/manifest.json", "runs/first/log.jsonl"):
        assert f"rec-ray/whole line/{part}" in keys
    assert not [key for key in keys if "/training/" in key], "checkpoints are gone when the run is"
    answer = said("recommend", "--any", "-n", "5")
    assert answer["version"] == "1" and len(answer["item_ids"]) == 5
    with postgresql.engine("whole_line").connect() as connection:
        import sqlalchemy as sa

        found = connection.execute(sa.text("SELECT version FROM model_version ORDER BY updated_at DESC LIMIT 1"))
        assert found.scalar() == "1"
    for secret in (seaweedfs.secret_key, postgresql.password):
        assert all(secret.encode() not in _read(seaweedfs, key) for key in keys if key.endswith((".json", ".jsonl")))
    assert said("versions", "rollback", "1")["version"] == "1"
    assert said("versions", "show", "1")["files"] == "complete"


def _all(folder: str) -> Any:
    import pyarrow.fs as pafs

    return pafs.FileSelector(folder, recursive=True)


def _read(server: SeaweedFS, path: str) -> bytes:
    with server.filesystem().open_input_stream(path) as stream:
        return bytes(stream.read())
