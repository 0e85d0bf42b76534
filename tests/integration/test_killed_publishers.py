"""Publish, rollback, candidates, prune and forget are killed at random moments; a reader never finds a breach."""

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from paused_publisher import open_publisher
from stored_versions import write_feast_repo, write_version

from rec_ray.candidate_store.manifest import read_manifest
from rec_ray.candidate_store.parts import check_part
from rec_ray.errors import DataError, UnavailableError
from rec_ray.publishing.publish import Publisher, publish_version
from rec_ray.storage.model_store import candidates_folder, find_model

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.timeout(3600)]

SCRIPT = Path(__file__).with_name("paused_publisher.py")
USERS = [f"u{number}" for number in range(1000)]
ITEMS = [f"i{number}" for number in range(50)]
SAMPLE = USERS[::50]
COMMANDS = ("publish 2", "rollback 1", "candidates {live}", "prune 1", "forget {user}")


class Reader(threading.Thread):
    """Reads like a serving backend, twenty times a second, and keeps whatever is not as it must be."""

    def __init__(self, settings_file: Path) -> None:
        super().__init__(daemon=True)
        self.publisher = open_publisher(settings_file)
        self.breaches: list[str] = []
        self.readings = 0
        self.forgotten: set[str] = set()
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.05):
            try:
                self.breaches += self.read()
                self.readings += 1
            except UnavailableError:
                continue
            except Exception as error:
                self.breaches.append(f"{type(error).__name__}: {error}")

    def read(self) -> list[str]:
        """Return the breaches of one reading: the live version, its manifest and parts, lists and vectors."""
        found = []
        storage, live = self.publisher.storage, self.publisher.database.live()
        assert live is not None
        prefix = candidates_folder(live)
        find_model(live, storage)
        try:
            manifest = read_manifest(storage, prefix)
            for folder, parts in manifest.parts.items():
                for part in parts:
                    check_part(storage, f"{prefix}/{folder}/{part.name}", part)
        except DataError as error:
            # A prune or a forget may have removed the parts of a manifest that was replaced meanwhile.
            if read_manifest(storage, prefix) == manifest:
                found.append(f"live version {live}: {error}")
        users = [user for user in SAMPLE if user not in self.forgotten]
        features = ["user_items:top_k_item_ids", "user_items:model_version", "user_embedding:embedding"]
        rows = self.publisher.store.get_online_features(
            features=features, entity_rows=[{"user_id": user} for user in users]
        ).to_dict()
        for user, items, stamp, vector in zip(
            users, rows["top_k_item_ids"], rows["model_version"], rows["embedding"], strict=True
        ):
            if len(items or []) != 5 or stamp not in ("1", "2") or len(vector or []) != 8:
                found.append(f"user {user}: {items}, {stamp}, {vector}")
        return found

    def close(self) -> None:
        self._ended.set()
        self.join()


class Killed:
    """A project, and a process that does one command after the other until it is killed."""

    def __init__(self, folder: Path, online_store: dict[str, Any]) -> None:
        write_feast_repo(folder / "repo", online_store)
        settings = {
            "feast": {"repo": str(folder / "repo")},
            "storage": {"url": str(folder / "store")},
            "database": {"url": f"sqlite:///{folder}/versions.db"},
            "publish": {"batch_rows": 100, "wait_seconds": 60},
        }
        self.file = folder / "rec_ray.yaml"
        self.file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        self.publisher: Publisher = open_publisher(self.file)
        for version in ("1", "2"):
            write_version(self.publisher.storage, version, USERS, ITEMS, part_rows=250)
            publish_version(self.publisher, version)

    def start(self) -> None:
        command = [sys.executable, str(SCRIPT), str(self.file)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.hear() == "ready"

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def do(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        assert self.hear() == "begin"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(params=["sqlite", "postgresql", "redis"])
def killed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Killed]:
    if request.param == "sqlite":
        store: dict[str, Any] = {"type": "sqlite", "path": "online_store.db"}
    elif request.param == "postgresql":
        server = request.getfixturevalue("postgresql")
        server.make_database("killed")
        store = server.online_store("killed")
    else:
        server = request.getfixturevalue("redis_server")
        server.client().flushall()
        store = server.online_store()
    yield Killed(tmp_path, store)


def kill_often(killed: Killed, times: int) -> None:
    """Kill each command at random moments of its time, then let it end once; the reader goes on all the while."""
    reader = Reader(killed.file)
    reader.start()
    drawn = random.Random(0)
    forget_users = iter(USERS[1::7])
    kills = 0
    killed.start()
    for command in COMMANDS:
        took = 1.0
        for turn in range(times + 1):
            user = next(forget_users)
            reader.forgotten.add(user)
            line = command.format(live=killed.publisher.database.live(), user=user)
            began = time.perf_counter()
            killed.do(line)
            if turn:
                # A new process takes longer than the one that was timed.
                time.sleep(drawn.uniform(0, 1.5 * took))
                kills += 1
                killed.kill()
                killed.start()
            else:
                assert json.loads(killed.hear()) == {"done": line}
                took = time.perf_counter() - began
        killed.do(line)
        assert json.loads(killed.hear()) == {"done": line}, "it ends well after any number of kills"
    killed.kill()
    reader.close()
    print(f"{kills} kills, {reader.readings} readings, {len(reader.breaches)} breaches")
    assert reader.breaches == [] and reader.readings > 10
    assert killed.publisher.database.lock_holder() is None


@pytest.mark.parametrize("killed", ["sqlite"], indirect=True)
def test_commands_that_are_killed_breach_nothing(killed: Killed) -> None:
    kill_often(killed, 1)


@pytest.mark.faults
def test_ten_kills_of_each_command_breach_nothing(killed: Killed) -> None:
    kill_often(killed, 10)
