"""Commands that cannot succeed are refused without Ray, Feast and torch, with the command to try, also as JSON."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from stored_versions import write_version

from rec_ray.cli.main import main
from rec_ray.cli.options import name_project
from rec_ray.storage.object_store import open_storage
from rec_ray.versions.registry import VersionDatabase, VersionRow


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Versions 1 to 3 are stored; 1 was live, 2 is, 3 has no candidates. Its folder needs quotes in a shell."""
    folder = tmp_path / "Müller's shop (neu)"
    folder.mkdir()
    settings = {"storage": {"url": "store"}, "database": {"url": "sqlite:///versions.db"}}
    (folder / "rec_ray.yaml").write_text(yaml.safe_dump(settings))
    storage, database = open_storage(str(folder / "store")), VersionDatabase(f"sqlite:///{folder}/versions.db")
    for number in range(1, 4):
        database.reserve(f"run {number}")
        write_version(storage, str(number), ["u"], ["i"])
        database.mark(str(number), "stored")
    storage.delete_prefix("two-tower/3/candidates")
    for version in ("1", "2"):
        database.publish(VersionRow(version, f"run {version}"))
    return folder


REFUSED = {
    "publish 9": (4, "there is no version '9'"),
    "publish 3": (4, "no candidates for version 3; run: rec-ray candidates -C {folder} 3"),
    "publish": (4, "no candidates for version 3; run: rec-ray candidates -C {folder} 3"),
    "publish --increment newest": (4, "holds no increment 'newest'; it has none. Make one with `rec-ray candidates -C"),
    "evaluate 9": (4, "there is no version '9'"),
    "candidates 9": (4, "there is no version '9'"),
    "candidates --since yesterday": (2, "--since takes a time"),
    "versions rollback 3": (2, "To make it live for the first time: rec-ray publish -C {folder} 3"),
    "versions rollback 9": (4, "there is no version '9'"),
    "run --run-id a/b": (2, "'a/b' is no run id"),
    "train --run-id a/b": (2, "'a/b' is no run id"),
    "run --set train.epoch=3": (2, "train.epoch: no such setting; did you mean train.epochs? (from --set)"),
}


@pytest.mark.parametrize("command", REFUSED)
def test_a_refusal_names_the_command_to_try_with_the_quoted_project(
    project: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    code, said = REFUSED[command]
    assert main([*command.split(), "-C", str(project), "--json"]) == code
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert answer["code"] == code and said.format(folder=shlex.quote(str(project))) in answer["error"]
    assert printed.err.strip() == f"rec-ray: {answer['error']}"


def test_a_wrong_option_is_an_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--jsn", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["code"] == 2
    assert main(["-h"]) == 0 and main(["run", "-h"]) == 0


def test_a_rollback_to_the_live_version_does_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = [row.updated_at for row in VersionDatabase(f"sqlite:///{project}/versions.db").list_versions()]
    assert main(["versions", "rollback", "2", "-C", str(project)]) == 0
    assert "Version 2 is live already; nothing was done." in capsys.readouterr().out
    assert before == [row.updated_at for row in VersionDatabase(f"sqlite:///{project}/versions.db").list_versions()]


def test_a_rollback_after_another_version_was_partly_pushed_is_no_refusal(project: Path) -> None:
    from rec_ray.cli.refusals import is_live
    from rec_ray.config.loading import load_settings

    database = VersionDatabase(f"sqlite:///{project}/versions.db")
    with database.publishing_lock("a test", 60) as lock:
        database.begin_push("1", lock)
    assert not is_live(load_settings(project / "rec_ray.yaml", environ={}), "2")


def test_refusals_import_neither_ray_nor_feast_nor_torch(project: Path) -> None:
    commands = [[*command.split(), "-C", "."] for command in REFUSED]
    code = (
        "import sys; from rec_ray.cli.main import main;"
        f"codes = [main(words) for words in {commands}];"
        "print(codes, sorted({'feast', 'torch', 'ray', 'alembic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{[code for code, _ in REFUSED.values()]} []"


def test_only_commands_that_take_a_project_get_it(project: Path) -> None:
    assert main(["versions", "-C", str(project)]) == 0
    where = f"-C {shlex.quote(str(project))}"
    for text, expected in {
        "run `rec-ray versions prune` or rec-ray init": f"run `rec-ray versions prune {where}` or rec-ray init",
        "see rec-ray versions.": f"see rec-ray versions {where}.",
        "rec-ray candidates 3 --publish": f"rec-ray candidates {where} 3 --publish",
        "rec-ray feast-views --apply": f"rec-ray feast-views {where} --apply",
        "the program rec_ray": "the program rec_ray",
    }.items():
        assert name_project(text) == expected
