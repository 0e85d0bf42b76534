"""The lock of a publisher that cannot release it is taken over at once; that of a living one is not."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from rec_ray.cli.main import main
from rec_ray.errors import LockedError
from rec_ray.versions.push_fence import Fence
from rec_ray.versions.registry import VersionDatabase

DIES_WITH_THE_LOCK = """
import os, sys
from rec_ray.versions.registry import VersionDatabase
from rec_ray.versions.lock import PublishingLock
PublishingLock(VersionDatabase(sys.argv[1]).connection, "the dead one", 900, "its-run").acquire()
os._exit(0)
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/versions.db"


@pytest.fixture
def database(url: str) -> VersionDatabase:
    return VersionDatabase(url)


def change_lock(url: str, **values: Any) -> None:
    names = ", ".join(f"{name} = :{name}" for name in values)
    with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
        connection.execute(sa.text(f"UPDATE publishing_lock SET {names}"), values)


def leave_a_lock(url: str) -> None:
    subprocess.run([sys.executable, "-c", DIES_WITH_THE_LOCK, url], check=True)


def test_the_lock_of_a_dead_process_of_this_machine_is_taken_over(
    url: str, database: VersionDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    leave_a_lock(url)
    with database.publishing_lock("me", 900):
        assert database.lock_holder().owner == "me"
    assert "taking over the publishing lock of the dead one: its process" in caplog.text


def test_the_lock_of_a_process_elsewhere_is_waited_for_unless_it_is_of_the_same_run(
    url: str, database: VersionDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """A process number says nothing about another machine, nor about one that was started again."""
    leave_a_lock(url)
    change_lock(url, machine="another machine")
    with pytest.raises(LockedError, match=r"the dead one is publishing.*rec-ray versions unlock --yes"):
        database.publishing_lock("me", 900, 0, "my-run").__enter__()
    with database.publishing_lock("me", 900, 0, "its-run"):
        pass
    assert "it belongs to this run, its-run" in caplog.text


def test_the_lock_of_a_living_process_is_not_taken_over(database: VersionDatabase, url: str) -> None:
    with database.publishing_lock("me", 900, 0, "my-run"), pytest.raises(LockedError):
        VersionDatabase(url).publishing_lock("other", 5, 0, "other-run").__enter__()


def test_a_number_that_another_process_got_meanwhile_is_not_the_dead_one(url: str, database: VersionDatabase) -> None:
    with database.publishing_lock("me", 900):
        change_lock(url, pid_started=1)
        with VersionDatabase(url).publishing_lock("other", 900):
            pass


def test_a_lock_from_the_future_is_of_a_clock_that_went_back(
    url: str, database: VersionDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten years would otherwise be waited for."""
    leave_a_lock(url)
    ahead = datetime.now(UTC) + timedelta(days=3650)
    change_lock(url, machine="another machine", expires_at=ahead.replace(tzinfo=None).isoformat(" "))
    with database.publishing_lock("me", 900):
        pass
    assert "a clock went back" in caplog.text
    leave_a_lock(url)
    soon = datetime.now(UTC) + timedelta(seconds=890)
    change_lock(url, machine="another machine", expires_at=soon.replace(tzinfo=None).isoformat(" "))
    with pytest.raises(LockedError):
        database.publishing_lock("me", 5).__enter__()


def test_unlock_shows_the_holder_and_frees_only_with_yes(url: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "rec_ray.yaml").write_text(f"database: {{url: '{url}'}}\nstorage: {{url: '{tmp_path}/store'}}\n")

    def run(*options: str) -> str:
        assert main(["versions", "unlock", "-C", str(tmp_path), *options]) == 0
        return str(capsys.readouterr().out)

    assert "nobody" in run()
    leave_a_lock(url)
    change_lock(url, machine="another machine")
    said = run()
    assert "the dead one" in said and "free it with --yes" in said and "held for" in said
    assert VersionDatabase(url).lock_holder() is not None
    assert '"done": "freed"' in run("--yes", "--json")
    assert VersionDatabase(url).lock_holder() is None


def test_the_fence_of_a_lock_that_was_taken_over_stops_every_process(url: str, database: VersionDatabase) -> None:
    with database.publishing_lock("me", 900, 0, "my-run") as lock:
        fence = database.fence(lock).open()
        assert fence.check() and not fence.check(60), "read a moment ago, and the lock cannot have run out since"
        assert fence.check(0)
        with VersionDatabase(url).publishing_lock("other", 900, 0, "my-run"), pytest.raises(LockedError, match="other"):
            fence.check()
    with pytest.raises(LockedError, match="released"):
        fence.check()


def test_a_fence_reads_again_when_the_lock_may_have_run_out(url: str, database: VersionDatabase) -> None:
    with database.publishing_lock("me", 900) as lock:
        fence = database.fence(lock).open()
        change_lock(url, expires_at=(datetime.now(UTC) + timedelta(milliseconds=1)).replace(tzinfo=None).isoformat(" "))
        assert fence.check() and fence.check(60), "its deadline has passed, however young the check is"


def test_no_password_is_in_what_a_fence_shows() -> None:
    assert "hunter2" not in repr(Fence("postgresql://me@host/db", "token", "hunter2"))
