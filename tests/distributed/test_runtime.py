"""Ray as people's machines have it: other clusters, dead addresses, odd folders; and GPUs that are not there."""

import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import OutOfMemoryError, WorkerCrashedError

from rec_ray.config import RaySettings, Settings
from rec_ray.config.loading import load_settings
from rec_ray.distributed import runtime
from rec_ray.distributed.killed_workers import explained_kills, is_memory_kill
from rec_ray.distributed.runtime import check_gpus, is_head, is_local, is_open, join_cluster
from rec_ray.errors import ConfigError, RecRayError, UnavailableError


def settings_of(folder: Path, *changes: str) -> Settings:
    from rec_ray.sample.project import init_project

    init_project(folder)
    return load_settings(folder / "rec_ray.yaml", list(changes), environ={})


@pytest.mark.usefixtures("processes", "local_ray")
def test_gpus_that_are_not_there_are_missed_before_a_step_waits_for_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanting = settings_of(tmp_path / "shop", "candidates.use_gpu=true")
    with pytest.raises(ConfigError, match=r"candidates\.use_gpu: this machine has no GPU"):
        check_gpus(wanting, can_come=False)
    with caplog.at_level(logging.WARNING):
        check_gpus(wanting, can_come=True)
    assert "candidates.use_gpu: Ray has no GPU yet" in caplog.text
    check_gpus(load_settings(tmp_path / "shop" / "rec_ray.yaml", environ={}), can_come=False)


@pytest.fixture
def nobody() -> str:
    """An address at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


def test_an_address_at_which_nobody_listens_is_named_at_once_with_its_variable(nobody: str) -> None:
    started = time.monotonic()
    for address in (nobody, f"ray://{nobody}"):
        with pytest.raises(UnavailableError, match=rf"{address} \(ray\.address, or RAY_ADDRESS .* start it, correct"):
            join_cluster(address)
    assert time.monotonic() - started < 10
    assert not is_open("no port") and not is_open("host.invalid:1", seconds=0.5)


def test_a_port_of_something_else_is_no_head_of_a_cluster() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        assert is_open(address) and not is_head(address, seconds=0.5)
    assert runtime.CONNECT_SECONDS + runtime.HEAD_SECONDS < 15


@pytest.mark.usefixtures("processes", "local_ray")
def test_the_head_of_a_running_cluster_is_one() -> None:
    head = ray.get_runtime_context().gcs_address
    assert is_open(head) and is_head(head)


@pytest.mark.parametrize(("address", "local"), [(None, True), ("local", True), ("auto", False), ("h:6379", False)])
def test_only_an_address_leads_to_a_cluster(address: str | None, local: bool) -> None:
    assert is_local(RaySettings(address=address)) is local


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        (["late", None], None),
        (["late", "late"], "Ray cannot be started on this machine: .* timed out during startup.*overloaded"),
        (["other"], "Ray cannot be started on this machine: OSError: no space"),
    ],
)
def test_a_slow_start_is_tried_once_more(
    outcomes: list[str | None], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The errors are Ray's own; when they are raised cannot be arranged."""
    errors = {
        "late": Exception("The current node timed out during startup. This could happen because some of the raylet"),
        "other": OSError("no space"),
    }
    calls: list[dict[str, Any]] = []

    def init(**arguments: Any) -> None:
        calls.append(arguments)
        outcome = outcomes[len(calls) - 1]
        if outcome:
            raise errors[outcome]

    monkeypatch.setattr(runtime.ray, "init", init)
    monkeypatch.setattr(runtime.ray, "shutdown", lambda: None)
    monkeypatch.setattr(runtime.ray, "is_initialized", lambda: False)
    if said is None:
        assert runtime.open_ray(RaySettings(num_cpus=1))
    else:
        with pytest.raises(UnavailableError, match=said):
            runtime.open_ray(RaySettings(num_cpus=1))
    assert len(calls) == len(outcomes)
    assert {call["address"] for call in calls} == {"local"}, "a Ray that runs here already is left alone"


WHERE = """
import ray
from rec_ray.config import RaySettings
from rec_ray.distributed.runtime import open_ray
from rec_ray.logs import configure_logging

configure_logging(as_json=False)
assert open_ray(RaySettings(num_cpus=1, object_store_memory=100_000_000))

@ray.remote
def where():
    import feast, torch
    return [feast.__name__, torch.__name__, feast.__file__, torch.__file__]

print(ray.cluster_resources()["CPU"], *ray.get(where.remote()), flush=True)
ray.shutdown()
"""


@pytest.mark.usefixtures("processes", "local_ray")
def test_a_run_beside_another_ray_in_an_odd_folder_without_a_home(tmp_path: Path) -> None:
    """Files named like packages lie in the working folder, TMPDIR is too long for sockets, and HOME cannot be made."""
    for name in ("feast.py", "torch.py"):
        (tmp_path / name).write_text("raise ImportError('this is no package')")
    long = tmp_path / ("x" * 90)
    long.mkdir()
    # The package itself is found as it is now, not by the working folder.
    package = str(Path(runtime.__file__).parents[2])
    (tmp_path / "file").write_text("")
    home = str(tmp_path / "file" / "home")
    environment = {**os.environ, "TMPDIR": str(long), "HOME": home, "PYTHONPATH": package}
    # As on a machine of people, where Ray makes a token and saves it at home.
    environment.pop("RAY_AUTH_MODE")
    ran = subprocess.run(
        [sys.executable, "-P", "-c", WHERE], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("1.0 feast torch ") and str(tmp_path) not in ran.stdout
    assert "is missing, cannot be written, or is too long for its sockets" in ran.stderr
    assert "the home folder cannot be written; the token of this Ray is not saved" in ran.stderr
    assert "memory: a run with 1 CPUs needs about 2.5 GB at least, the limit is " in ran.stderr


def test_a_kill_for_memory_is_found_behind_what_was_raised() -> None:
    killed = OutOfMemoryError("Task was killed due to the node running low on memory.")
    behind = RecRayError("training failed")
    behind.__cause__ = killed
    assert is_memory_kill(killed, False) and is_memory_kill(behind, False)
    crashed = WorkerCrashedError()
    assert is_memory_kill(crashed, True) and not is_memory_kill(crashed, False)
    assert not is_memory_kill(ValueError("memory"), True)
    crashed.__cause__ = crashed
    assert not is_memory_kill(crashed, False), "a circle ends"


def test_a_kill_for_memory_names_need_and_limit() -> None:
    with (
        pytest.raises(UnavailableError, match=r"memory ran out: a run with 1 CPUs needs about 2\.5 GB .* the limit is"),
        explained_kills(RaySettings(num_cpus=1)),
    ):
        raise OutOfMemoryError("killed")
    with (
        pytest.raises(ConfigError, match=r"memory ran out: .*lower ray\.num_cpus"),
        explained_kills(RaySettings(num_cpus=99999)),
    ):
        raise OutOfMemoryError("killed")
    with pytest.raises(ValueError, match="other"), explained_kills(RaySettings()):
        raise ValueError("other")
