"""The Containerfile and the entrypoint do what they promise."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from containerfile import instructions

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
UNKNOWN_USER = 1000650000  # of the kind that OpenShift gives to a namespace


def arguments(name: str) -> list[str]:
    return [value for instruction, value in instructions() if instruction == name]


def test_the_containerfile_is_clean() -> None:
    checked = subprocess.run([str(BIN / "hadolint"), str(ROOT / "Containerfile")], capture_output=True, text=True)

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_image_has_the_base_the_folder_and_the_user_that_are_asked_for() -> None:
    assert "BASE_IMAGE=registry.access.redhat.com/ubi9/python-311:latest" in arguments("ARG")
    assert "RUNTIME_IMAGE=${BASE_IMAGE}" in arguments("ARG")
    assert arguments("FROM") == ["${BASE_IMAGE} AS environment", "environment AS program", "${RUNTIME_IMAGE}"]
    assert set(arguments("WORKDIR")) == {"/app"}
    assert "RUN_AS_USER=1001" in arguments("ARG")
    assert arguments("USER") == ["0", "0", "${RUN_AS_USER}:0"], "root builds, and another user of group 0 runs"
    assert arguments("ENTRYPOINT") == ['["/app/entrypoint.sh"]']


def test_every_source_of_the_image_exists_and_reaches_the_builder() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = [
        source
        for value in arguments("COPY")
        if not value.startswith("--from")
        for source in value.split()[:-1]
        if not source.startswith("--")
    ]

    assert sources
    for source in sources:
        assert (ROOT / source).exists(), f"the Containerfile copies {source}, which is not there"
        assert any(fnmatch(source, pattern) for pattern in allowed), f".dockerignore keeps {source} from the builder"


def test_a_change_of_code_replaces_only_the_last_layer() -> None:
    """The environment is made of pyproject.toml and the lock alone; the code comes in the last COPY."""
    stages: list[list[str]] = []
    for name, value in instructions():
        if name == "FROM":
            stages.append([])
        elif stages:
            stages[-1].append(f"{name} {value}")
    environment, program, last = stages
    files = ["COPY --from=environment /app/.venv /app/.venv", "COPY --from=program /app/program /app/program"]

    assert [step for step in environment if step.startswith("COPY")] == ["COPY pyproject.toml requirements.lock ./"]
    assert "COPY rec_ray ./rec_ray" in program and "COPY jobs /app/program/jobs" in program
    assert [step for step in last if step.startswith(("COPY", "RUN"))][1:] == files, "the code is the last layer"


def test_dependencies_come_through_uv_from_the_lock() -> None:
    installs = [value for name, value in instructions() if name == "RUN" and "uv pip install" in value]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = [value for value in arguments("ARG") if value.startswith("EXTRAS=")]
    names = set(extras.removeprefix("EXTRAS=").strip('"').split())

    assert "--constraint requirements.lock" in installs[0]
    assert "--no-deps --prefix /app/program" in installs[1]
    # Batch runs need no server of the API.
    assert names == set(project["optional-dependencies"]) - {"dev", "faiss", "serve"}, "text, as the replaced image had"
    assert not any(re.search(r"(SECRET|PASSWORD|TOKEN|_KEY)\s*=", value) for _, value in instructions())


@pytest.fixture
def container() -> Iterator[Path]:
    """A folder that every user may read, with the entrypoint, and programs that tell how they were called."""
    folder = Path(tempfile.mkdtemp(prefix="entrypoint"))
    programs = folder / "bin"
    programs.mkdir()
    shutil.copy(ROOT / "entrypoint.sh", folder)
    for program in ("rec-ray", "python"):
        (programs / program).write_text(
            "#!/bin/bash\n"
            "trap 'echo stopped in order; exit 6' TERM\n"
            f'echo {program} "$@"\n'
            'echo "RAY_ADDRESS=${RAY_ADDRESS-unset} HOME=$HOME USER=${USER-unset}"\n'
            'echo "REC_RAY_RUN_ID=${REC_RAY_RUN_ID-unset}"\n'
            'touch "$HOME/file" || exit 99\n'
            '[[ "$*" != *wait* ]] || { sleep 60 & wait $!; }\n'
            "exit 5\n"
        )
    for path in (folder, programs, *programs.iterdir()):
        path.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def environment(container: Path, **more: str) -> dict[str, str]:
    return {"PATH": f"{container / 'bin'}:{os.environ['PATH']}", "HOME": str(container), "USER": "someone", **more}


@pytest.mark.parametrize(
    ("call", "called"),
    [
        ([], "rec-ray run"),
        (["--set", "train.epochs=1"], "rec-ray run --set train.epochs=1"),
        (["run", "--set", "train.epochs=1"], "rec-ray run --set train.epochs=1"),
        (["init", "demo"], "rec-ray init demo"),
        (["rec-ray", "versions"], "rec-ray versions"),
        (["python", "jobs/train.py", "-C", "a b"], "python jobs/train.py -C a b"),
    ],
)
def test_the_entrypoint_runs_the_program_and_ends_with_its_exit_code(
    container: Path, call: list[str], called: str
) -> None:
    ran = subprocess.run(
        [str(container / "entrypoint.sh"), *call], env=environment(container), capture_output=True, text=True
    )

    assert ran.stdout.splitlines()[0] == called
    assert ran.returncode == 5, ran.stderr


@pytest.mark.parametrize(
    ("mode", "address", "called", "seen"),
    [
        ("", "", "rec-ray run", "RAY_ADDRESS=unset"),
        ("local", "http://head:8265", "rec-ray run", "RAY_ADDRESS=unset"),
        ("", "10.0.0.1:6379", "rec-ray run", "RAY_ADDRESS=10.0.0.1:6379"),
        ("driver", "10.0.0.1:6379", "rec-ray run", "RAY_ADDRESS=10.0.0.1:6379"),
        ("", "http://head:8265", "--address http://head:8265 --run-id night -- rec-ray run", ""),
        ("submit", "https://head", "--address https://head --run-id night -- rec-ray run", ""),
    ],
)
def test_the_address_or_the_mode_says_where_it_runs(
    container: Path, mode: str, address: str, called: str, seen: str
) -> None:
    more = {"MODE": mode, "RAY_ADDRESS": address, "REC_RAY_RUN_ID": "night"}
    ran = subprocess.run(
        [str(container / "entrypoint.sh")], env=environment(container, **more), capture_output=True, text=True
    )

    assert ran.stdout.splitlines()[0].endswith(called)
    assert seen in ran.stdout


@pytest.mark.parametrize(
    ("cluster", "given", "run_id"),
    [
        ("rec-ray-29384760-x7k2p", "", "rec-ray-29384760"),
        ("night-raycluster-x7k2p", "", "night"),
        ("rec-ray-x7k2p", "mine", "mine"),
    ],
)
def test_the_run_of_a_rayjob_is_called_like_it_at_every_try(
    container: Path, cluster: str, given: str, run_id: str
) -> None:
    more = {"MODE": "rayjob", "RAY_ADDRESS": "10.0.0.1:6379", "RAY_CLUSTER_NAME": cluster, "REC_RAY_RUN_ID": given}
    ran = subprocess.run(
        [str(container / "entrypoint.sh")], env=environment(container, **more), capture_output=True, text=True
    )

    assert ran.stdout.splitlines()[0] == "rec-ray run"
    assert f"REC_RAY_RUN_ID={run_id}" in ran.stdout.splitlines()


@pytest.mark.parametrize(
    "more",
    [
        {"MODE": "submit"},
        {"MODE": "submit", "RAY_ADDRESS": "head:6379"},
        {"MODE": "x"},
        {"MODE": "rayjob"},
        {"MODE": "rayjob", "RAY_CLUSTER_NAME": "no-letters-"},
    ],
)
def test_a_mode_that_cannot_be_is_refused(container: Path, more: dict[str, str]) -> None:
    ran = subprocess.run(
        [str(container / "entrypoint.sh")], env=environment(container, **more), capture_output=True, text=True
    )

    assert ran.returncode == 2
    assert "MODE" in ran.stderr


def test_a_signal_reaches_the_program(container: Path) -> None:
    command = [str(container / "entrypoint.sh"), "wait"]
    with subprocess.Popen(command, env=environment(container), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()

    assert "stopped in order" in rest
    assert process.returncode == 6


def test_a_user_that_the_image_does_not_know_gets_a_home_and_a_name(container: Path) -> None:
    """As root the real case; otherwise with a HOME that is not there, which takes the same way through the script."""
    env = environment(container, HOME="/not/there")
    del env["USER"]
    user: dict[str, Any] = {"user": UNKNOWN_USER, "group": 0, "extra_groups": []} if os.geteuid() == 0 else {}
    ran = subprocess.run([str(container / "entrypoint.sh")], env=env, capture_output=True, text=True, **user)

    assert ran.returncode == 5, ran.stdout + ran.stderr
    assert "HOME=/not/there" not in ran.stdout
    assert not user or "USER=rec_ray" in ran.stdout


def test_scripts_may_be_executed() -> None:
    for script in ("entrypoint.sh", ".ci/run"):
        assert (ROOT / script).stat().st_mode & stat.S_IXOTH, f"{script} is not executable"
