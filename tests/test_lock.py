"""requirements.lock holds one exact version of everything that pyproject.toml asks for, and no address."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEPENDENCIES = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}


def pins() -> dict[str, str]:
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in LOCK.splitlines()}


def test_every_line_is_one_exact_version_and_nothing_else() -> None:
    wrong = [line for line in LOCK.splitlines() if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line)]

    assert wrong == [], "no addresses, hashes, comments, markers or build suffixes; write it with `make lock`"
    assert len(pins()) == len(LOCK.splitlines())


@pytest.mark.parametrize(
    "requirement",
    [pytest.param(text, id=f"{extra}:{text}") for extra, texts in DEPENDENCIES.items() for text in texts],
)
def test_a_direct_dependency_is_locked_within_its_range(requirement: str) -> None:
    asked = Requirement(requirement)
    locked = pins().get(canonicalize_name(asked.name))

    assert locked is not None, f"{asked.name} is not in requirements.lock; run `make lock`"
    assert asked.specifier.contains(locked, prereleases=True), f"{asked.name}=={locked} is not {asked.specifier}"


def test_torch_is_the_version_that_every_machine_has_and_its_cuda_packages_are_left_to_it() -> None:
    assert pins()["torch"] == "2.13.0"
    assert [name for name in pins() if name.startswith(("nvidia-", "cuda-", "triton"))] == []
