"""The servers that other tests stand on: keys and passwords count, data survive, none outlives who started it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.fs as pafs
import pytest
import redis
import sqlalchemy as sa
from servers import PostgreSQL, Redis, SeaweedFS, environment_of

pytestmark = pytest.mark.usefixtures("processes")

ROOT = Path(__file__).resolve().parents[2]


def test_s3_wants_the_keys(seaweedfs: SeaweedFS) -> None:
    filesystem = pafs.S3FileSystem(
        access_key=seaweedfs.access_key,
        secret_key="wrong",
        region="us-east-1",
        scheme="http",
        endpoint_override=seaweedfs.endpoint.removeprefix("http://"),
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=1),
    )
    with pytest.raises(OSError, match="SIGNATURE"), filesystem.open_output_stream(f"{seaweedfs.bucket}/x") as stream:
        stream.write(b"x")


def test_s3_data_survive_a_crash(seaweedfs: SeaweedFS) -> None:
    path, address = f"{seaweedfs.bucket}/survivor", seaweedfs.endpoint
    with seaweedfs.filesystem().open_output_stream(path) as stream:
        stream.write(b"still here")
    seaweedfs.kill()
    with pytest.raises(OSError):
        seaweedfs.filesystem().get_file_info(path)
    seaweedfs.start()
    assert seaweedfs.endpoint == address
    with seaweedfs.filesystem().open_input_stream(path) as stream:
        assert stream.read() == b"still here"


def test_postgresql_data_survive_a_stop_and_a_crash(postgresql: PostgreSQL) -> None:
    postgresql.make_database("survivors")
    with postgresql.engine("survivors").connect() as connection:
        connection.execute(sa.text("CREATE TABLE kept (vector vector(2))"))
        connection.execute(sa.text("INSERT INTO kept VALUES ('[1,2]')"))
    for end in (postgresql.stop, postgresql.kill):
        end()
        with pytest.raises(sa.exc.OperationalError):
            postgresql.ask()
        postgresql.start()
        with postgresql.engine("survivors").connect() as connection:
            assert connection.scalar(sa.text("SELECT count(*) FROM kept")) == 1


def test_postgresql_wants_the_password(postgresql: PostgreSQL) -> None:
    engine = sa.create_engine(sa.make_url(postgresql.url).set(drivername="postgresql+psycopg", password="wrong"))
    with pytest.raises(sa.exc.OperationalError, match="password authentication failed"):
        engine.connect()


def test_redis_data_survive_and_the_password_counts(redis_server: Redis) -> None:
    redis_server.client().set("kept", "yes")
    for end in (redis_server.stop, redis_server.kill):
        end()
        redis_server.start()
        assert redis_server.client().get("kept") == b"yes"
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=redis_server.port).ping()


def test_settings_of_several_servers_name_no_password_in_an_address(
    seaweedfs: SeaweedFS, postgresql: PostgreSQL
) -> None:
    settings = environment_of([seaweedfs, postgresql])
    assert settings["REC_RAY__DATABASE__PASSWORD"] == postgresql.password
    assert postgresql.password not in settings["REC_RAY__DATABASE__URL"]
    assert seaweedfs.secret_key not in settings["REC_RAY__STORAGE__URL"] + settings["REC_RAY__STORAGE__ENDPOINT"]


def test_a_server_ends_with_the_process_that_was_killed() -> None:
    program = "import servers, time; s = servers.Redis().start(); print(s.pid, s.folder, flush=True); time.sleep(600)"
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
    )
    assert parent.stdout is not None
    pid, folder = parent.stdout.readline().split()
    server = psutil.Process(int(pid))
    assert server.is_running()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    # Nobody is left to wait for it, so it may stay a zombie where no init collects those.
    _poll(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)
    shutil.rmtree(folder)


def test_make_stack_says_how_to_use_it_and_stops_with_ctrl_c(tmp_path: Path) -> None:
    environment = tmp_path / "build" / "stack.env"
    stack = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "servers.py"), "--environment", str(environment)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert stack.stdout is not None
    printed: list[str] = []
    for line in stack.stdout:
        printed.append(line)
        if "Ctrl-C" in line:
            break
    written = dict(line.removeprefix("export ").split("=", 1) for line in environment.read_text().splitlines())
    assert {"REC_RAY__STORAGE__ENDPOINT", "REC_RAY__DATABASE__URL"} <= written.keys()
    assert environment.stat().st_mode & 0o077 == 0
    assert sum(line.startswith("online_store:") for line in printed) == 2
    servers = psutil.Process(stack.pid).children(recursive=True)
    assert len(servers) >= 3
    stack.send_signal(signal.SIGINT)
    stack.communicate(timeout=120)
    assert stack.returncode == 0
    _poll(lambda: not any(server.is_running() and server.status() != psutil.STATUS_ZOMBIE for server in servers))
    assert not environment.exists()


def _poll(done: object, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)
