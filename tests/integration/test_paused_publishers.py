"""A publisher that is stopped at any moment, overtaken and continued leaves no row of its version behind."""

import dataclasses
import json
import random
import signal
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

from rec_ray.errors import PartlyPublishedError
from rec_ray.publishing.publish import publish_version

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.timeout(3600)]

SCRIPT = Path(__file__).with_name("paused_publisher.py")
USERS = [f"u{number}" for number in range(2000)]
ITEMS = [f"i{number}" for number in range(50)]
VIEWS = {"item_embedding": ("item_id", ITEMS), "user_embedding": ("user_id", USERS), "user_items": ("user_id", USERS)}


class Paused:
    """Two publishers of one project: this process, and one that is stopped and continued."""

    def __init__(self, folder: Path, online_store: dict[str, Any]) -> None:
        write_feast_repo(folder / "repo", online_store)
        settings = {
            "feast": {"repo": str(folder / "repo")},
            "storage": {"url": str(folder / "store")},
            "database": {"url": f"sqlite:///{folder}/versions.db"},
            "publish": {"lock_seconds": 1, "batch_rows": 100, "wait_seconds": 60},
        }
        (folder / "rec_ray.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
        self.publisher = open_publisher(folder / "rec_ray.yaml")
        for version in ("1", "2"):
            write_version(self.publisher.storage, version, USERS, ITEMS)
        command = [sys.executable, str(SCRIPT), str(folder / "rec_ray.yaml")]
        self.other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.read() == "ready"

    def read(self) -> str:
        assert self.other.stdout is not None
        return self.other.stdout.readline().strip()

    def publish_there(self, version: str) -> None:
        """Let the other process begin to publish."""
        assert self.other.stdin is not None
        self.other.stdin.write(f"publish {version}\n")
        self.other.stdin.flush()
        assert self.read() == "begin"

    def pause_and_overtake(self, seconds: float) -> str:
        """Stop the other process while it publishes 1, publish 2 here, continue the other; return how it ended."""
        self.publish_there("1")
        time.sleep(seconds)
        self.other.send_signal(signal.SIGSTOP)
        time.sleep(1.1)
        here = dataclasses.replace(self.publisher, run_id=f"here-{time.time()}")
        # Stopped inside a transaction of PostgreSQL or SQLite, it keeps others from writing the same rows: the first
        # waits for its end, and the second gives up after some seconds.
        going_on = threading.Timer(8, self.other.send_signal, [signal.SIGCONT])
        going_on.start()
        try:
            publish_version(here, "2")
        except PartlyPublishedError as error:
            assert "database is locked" in str(error)
            self.other.send_signal(signal.SIGCONT)
            publish_version(here, "2")
        going_on.cancel()
        self.other.send_signal(signal.SIGCONT)
        return str(json.loads(self.read()).get("error", "done"))

    def stale_rows(self, version: str) -> int:
        """Return how many rows of all views have another stamp than a version."""
        stale = 0
        for view, (key, ids) in VIEWS.items():
            rows = [{key: each} for each in ids]
            found = self.publisher.store.get_online_features(features=[f"{view}:model_version"], entity_rows=rows)
            stale += sum(stamp != version for stamp in found.to_dict()["model_version"])
        return stale


@pytest.fixture(params=["sqlite", "postgresql", "redis"])
def paused(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Paused]:
    if request.param == "sqlite":
        store: dict[str, Any] = {"type": "sqlite", "path": "online_store.db"}
    elif request.param == "postgresql":
        server = request.getfixturevalue("postgresql")
        server.make_database("paused")
        store = server.online_store("paused")
    else:
        server = request.getfixturevalue("redis_server")
        server.client().flushall()
        store = server.online_store()
    pair = Paused(tmp_path, store)
    yield pair
    pair.other.send_signal(signal.SIGCONT)
    pair.other.kill()
    pair.other.wait()


def pause_often(paused: Paused, times: int) -> None:
    """Stop at random moments of a publication; a moment after its end overtakes nobody and counts like the others."""
    took = 0.0
    for _ in range(2):
        # The first one also imports and connects.
        began = time.perf_counter()
        paused.publish_there("1")
        assert json.loads(paused.read()) == {"done": "publish 1"}
        took = time.perf_counter() - began
        publish_version(paused.publisher, "2")
    drawn = random.Random(0)
    ends = []
    stale = 0
    for _ in range(times):
        ends.append(paused.pause_and_overtake(drawn.uniform(0, took)))
        if ends[-1] == "done" and paused.publisher.database.live() == "1":
            # It had ended, or gone on after the other's commit, as a publisher that waited its turn.
            publish_version(paused.publisher, "2")
        assert paused.publisher.database.live() == "2"
        stale += paused.stale_rows("2")
    print(f"{times} pauses within {took:.2f} s: {stale} stale rows; ended { ({end: ends.count(end) for end in ends}) }")
    assert stale == 0
    assert times < 10 or "LockedError" in ends, "some pauses were in the middle of a push"


def test_a_publisher_that_is_paused_leaves_no_stale_row(paused: Paused) -> None:
    pause_often(paused, 3)


@pytest.mark.faults
def test_fifty_pauses_leave_no_stale_row(paused: Paused) -> None:
    pause_often(paused, 50)
