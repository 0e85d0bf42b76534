"""Feast comes in with its classes as they are written, and others find typeguard as it was."""

import subprocess
import sys

import pytest

SEEN = """
import typeguard
before = typeguard.typechecked
from rec_ray.feature_store.api import Entity
assert typeguard.typechecked is before
Entity(name=1, join_keys=["user_id"])
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("processes")
def test_its_classes_are_as_written_and_typeguard_checks_others() -> None:
    ours = run(SEEN)
    assert ours.returncode == 0, ours.stderr
    checked = run(SEEN.replace("rec_ray.feature_store.api", "feast"))
    assert "TypeCheckError" in checked.stderr, "Feast checks no types any more: import it as everybody does"


@pytest.mark.usefixtures("processes")
def test_commands_that_only_read_versions_import_neither_feast_nor_ray() -> None:
    done = run("import sys, rec_ray.cli.version_listing; print(*{'feast', 'ray'} & set(sys.modules))")
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr
