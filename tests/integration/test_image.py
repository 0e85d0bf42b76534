"""The steps of the Containerfile, done in an empty folder, make an image that runs under any user id of group 0.

Without a container engine: a folder stands for the root of the file system, so `/app` and `/opt/uv` become folders
below it, and the machine's Python stands for that of the base image. Downloads may come from uv's cache. COPY,
RUN, ENV, ARG and WORKDIR are done as written. `make image` builds it with buildah, see tests/build_image.py.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from containerfile import ROOT, instructions

UNKNOWN_USER = 1000650000  # of the kind that OpenShift gives to a namespace
PLAIN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BUILD_TOOLS = {
    "uv",
    "uvx",
    "pip",
    "pip3",
    "gcc",
    "g++",
    "cc",
    "c++",
    "make",
    "cmake",
    "ninja",
    "cython",
    "rustc",
    "cargo",
}
OF_THE_BUILDER = re.compile(r"(PIP|UV|SSL)_|(REQUESTS|CURL)_CA_BUNDLE$|(https?|no)_proxy$", re.IGNORECASE)

pytestmark = pytest.mark.usefixtures("processes")


@dataclass
class Image:
    """A folder that stands for the root of an image, and the environment of its last stage."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    def inside(self, text: str) -> str:
        """Return a text of the Containerfile with its absolute paths below the folder."""
        return re.sub(r"(?<![\w./$}])/(app|opt/uv)\b", rf"{self.root}/\1", text)

    def expand(self, text: str) -> str:
        return re.sub(r"\$\{?(\w+)\}?", lambda name: self.environment.get(name[1], ""), text)


def python_for_everyone(folder: Path) -> Path:
    """Return a folder with a `python3.11` that every user may run, as the base image has it."""

    def is_open(path: Path) -> bool:
        return all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)

    found = shutil.which("python3.11", path=PLAIN_PATH)
    candidates = [Path(found)] if found else []
    candidates.append(Path(sys.executable))
    for candidate in candidates:
        has_venv = subprocess.run([str(candidate), "-c", "import venv, ensurepip"], capture_output=True, check=False)
        if is_open(candidate) and has_venv.returncode == 0:
            folder.mkdir()
            (folder / "python3.11").write_text(f'#!/bin/sh\nexec {candidate.resolve()} "$@"\n')
            (folder / "python3.11").chmod(0o755)
            return folder
    pytest.fail(f"none of {candidates} may be run by other users; install python3.11 with venv")


def build(image: Image, given: dict[str, str]) -> None:
    """Do the instructions; before the last stage the built files move aside, and an empty root is filled anew."""
    base = {"PATH": f"{python_for_everyone(image.root / 'base')}:{PLAIN_PATH}", "HOME": str(image.root / "home")}
    from_outside = {name: value for name, value in os.environ.items() if OF_THE_BUILDER.match(name)}
    for name in ("UV_NO_CACHE", "UV_FIND_LINKS"):
        from_outside.pop(name, None)
    (image.root / "home").mkdir()
    image.environment = {}
    built = image.root / "build"
    folder = image.root
    for name, value in instructions():
        if name == "FROM":
            if value == "${RUNTIME_IMAGE}":
                built.mkdir()
                for made in ("app", "opt"):
                    (image.root / made).rename(built / made)
            if " AS program" not in value:  # that stage goes on in the files of the one before
                image.environment = dict(base)
        elif name == "WORKDIR":
            folder = Path(image.inside(value))
            folder.mkdir(parents=True, exist_ok=True)
        elif name == "ARG":
            key, _, default = value.partition("=")
            image.environment[key] = given.get(key, default.strip('"'))
        elif name == "ENV":
            for key, text in re.findall(r"(\w+)=(\S*)", value):
                image.environment[key] = image.inside(image.expand(text))
        elif name == "COPY":
            *sources, target = value.split()
            from_stage = any(source.startswith("--from=") for source in sources)
            for source in [each for each in sources if not each.startswith("--from=")]:
                copy(built if from_stage else ROOT, source, Path(image.inside(target)), folder)
        elif name == "RUN":
            environment = {**from_outside, **image.environment, **given}
            environment.pop("UV_NO_CACHE", None)  # the machine's cache stands for the network
            ran = subprocess.run(
                ["/bin/bash", "-c", image.inside(value)],
                env={key: text for key, text in environment.items() if text or key in given},
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
            )
            assert ran.returncode == 0, f"RUN {value}\n{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"


def copy(root: Path, source: str, target: Path, folder: Path) -> None:
    found = root / source.lstrip("/")
    target = target if target.is_absolute() else folder / target
    if root != ROOT:
        found.rename(target)
    elif found.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(found, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(found, target)


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """The image as built for a CPU, from wheels that lie in PIP_FIND_LINKS where it is set."""
    root = Path(tempfile.mkdtemp(prefix="image", dir="/tmp"))
    root.chmod(0o755)
    made = Image(root)
    cache = subprocess.run([Path(sys.executable).with_name("uv"), "cache", "dir"], capture_output=True, text=True)
    given = {"UV_CACHE_DIR": cache.stdout.strip(), "TORCH_BACKEND": os.environ.get("UV_TORCH_BACKEND", "")}
    given["UV_LINK_MODE"] = "hardlink"  # a copy of 2 GB less
    if os.environ.get("PIP_FIND_LINKS"):
        given["UV_FIND_LINKS"] = ",".join(os.environ["PIP_FIND_LINKS"].split())
    previous = os.umask(0o022)
    try:
        build(made, given)
        yield made
    finally:
        os.umask(previous)
        shutil.rmtree(root, ignore_errors=True)


def run_as_unknown_user(image: Image, *command: str) -> subprocess.CompletedProcess[str]:
    """Run the entrypoint as OpenShift does: a user id without a name, group 0, and a HOME that cannot be written."""
    home = image.root / "home"
    home.chmod(0o555)
    user: dict[str, Any] = {"user": UNKNOWN_USER, "group": 0, "extra_groups": []} if os.geteuid() == 0 else {}
    home_of = str(home) if user else "/not/there"
    environment = {name: value for name, value in image.environment.items() if name not in ("PIP_INDEX_URL",)}
    return subprocess.run(
        [str(image.root / "app" / "entrypoint.sh"), *command],
        env={**environment, "HOME": home_of},
        cwd=image.root / "app",
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        **user,
    )


def test_the_image_holds_the_program_and_no_tool_that_built_it(image: Image) -> None:
    app = image.root / "app"

    assert sorted(path.name for path in app.iterdir()) == [".venv", "entrypoint.sh", "jobs", "program"]
    assert sorted(path.name for path in (app / "program").iterdir()) == ["bin", "entrypoint.sh", "jobs", "lib", "share"]
    assert not list((app / ".venv").glob("lib/*/site-packages/rec_ray*")), "the environment holds no code"
    assert not (image.root / "opt").exists(), "uv stays in the stage that builds"
    assert BUILD_TOOLS & {path.name for path in (app / ".venv" / "bin").iterdir()} == set()
    assert (app / "program" / "share" / "rec_ray" / "cluster" / "base" / "raycluster.yaml").is_file()
    for script in (app / "program" / "bin" / "rec-ray", app / ".venv" / "bin" / "ray", app / ".venv" / "bin" / "feast"):
        assert script.read_text().startswith(f"#!{app}/.venv/bin/python")


def test_every_command_finds_the_files_that_travel_with_the_program(image: Image) -> None:
    """The manifests of `render`, the templates of `init` and the script of the CronJob's pod."""
    made = run_as_unknown_user(image, "init", "project")
    assert made.returncode == 0, made.stderr
    helped = run_as_unknown_user(image, "python", f"{image.root}/app/jobs/create_rayjob.py", "--help")
    assert helped.returncode == 0 and "--template" in helped.stdout, helped.stderr
    settings = image.root / "app" / "project" / "rec_ray.yaml"
    settings.write_text((ROOT / "cluster" / "base" / "rec_ray.yaml").read_text())
    store = image.root / "app" / "project" / "feature_repo" / "feature_store.yaml"
    store.write_text((ROOT / "cluster" / "base" / "feature_store.yaml").read_text())
    rendered = run_as_unknown_user(image, "render", "cronjob", "-C", "project")
    assert rendered.returncode == 0 and "kind: RayCronJob" in rendered.stdout, rendered.stderr


def test_an_unknown_user_runs_the_whole_line_in_it(image: Image, tiny_tables: dict[str, pa.Table]) -> None:
    tables = image.root / "tables"
    tables.mkdir()
    for name, table in tiny_tables.items():
        pq.write_table(table, tables / f"{name}.parquet")
    made = run_as_unknown_user(image, "init", "shop", "--from", str(tables))
    assert made.returncode == 0, made.stderr

    small = ("train.epochs=1", "model.history=mean", "ray.num_cpus=2", "ray.object_store_memory=300000000")
    ran = run_as_unknown_user(image, "-C", "shop", *(word for setting in small for word in ("--set", setting)))

    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    assert "Version 1" in ran.stdout
    answered = run_as_unknown_user(image, "recommend", "u7", "-C", "shop")
    assert answered.returncode == 0 and "product" in answered.stdout, answered.stderr


def test_exit_codes_and_errors_come_through(image: Image) -> None:
    missing = run_as_unknown_user(image, "run", "--config", "not-there.yaml")

    assert missing.returncode == 2
    assert "not-there.yaml" in missing.stderr
