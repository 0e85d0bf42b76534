"""A user who is forgotten is in no file, no row and no key afterwards, and no publication brings the user back."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stored_versions import write_version
from test_publication import Shop, names, shop, sqlite_shop

from rec_ray.cli.main import main
from rec_ray.pipeline import run_forgetting, run_publishing, run_rollback
from rec_ray.publishing.previous_ids import note_replaced

__all__ = ["shop"]
pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.usefixtures("local_ray")]

SECRET = "u-secret-7"
USERS = [*names("u", range(20)), SECRET]


def files_with(folder: Path, text: str) -> list[str]:
    return [str(path) for path in sorted(folder.rglob("*")) if path.is_file() and text.encode() in path.read_bytes()]


def online_bytes(shop: Shop) -> bytes:
    """Return all that the online store holds."""
    online = shop.store.config.online_store
    if online.type == "redis":
        client = shop.store._get_provider().online_store._get_client(online)
        return b"".join([key + b"".join(client.hgetall(key).values()) for key in client.scan_iter(b"*")])
    connected = shop.store._get_provider().online_store
    if online.type == "postgres":
        with connected._get_conn(shop.store.config, autocommit=True) as connection, connection.cursor() as cursor:
            found = b""
            for view in ("item_embedding", "user_embedding", "user_items"):
                cursor.execute(f'SELECT entity_key FROM "shop_{view}"')
                found += b"".join(bytes(row[0]) for row in cursor.fetchall())
            return found
    return Path(connected._get_db_path(shop.store.config)).read_bytes()


def test_a_forgotten_user_is_nowhere_and_does_not_come_back(shop: Shop, tmp_path: Path) -> None:
    for version in ("1", "2"):
        write_version(shop.storage, version, USERS, names("i", range(6)), part_rows=10)
    backup = {key: shop.storage.read_bytes(key) for key in shop.storage.list("two-tower/1")}
    run_publishing(shop.settings, "1")
    run_publishing(shop.settings, "2")
    note_replaced(shop.storage, "2")
    work = tmp_path.joinpath("store", "runs", "open", "work", "data", "timelines")
    work.mkdir(parents=True)
    pq.write_table(pa.table({"user_id": USERS, "n": range(len(USERS))}), work / "a.parquet")
    facts = {"evaluation": {"examples": [{"user_id": SECRET}], "users": 3}, "version": "2"}
    shop.storage.write_bytes("two-tower/2/report.json", json.dumps(facts).encode())
    shop.storage.write_bytes("two-tower/2/report.html", SECRET.encode())
    assert SECRET.encode() in online_bytes(shop)
    others = USERS[:-1]
    before = shop.lists(others)

    done = run_forgetting(shop.settings, [SECRET], [])

    assert (done.users, done.items, done.republish) == (1, 0, None)
    assert len(done.candidates) == 3 and "user_items" in done.views and "backups" in " ".join(done.not_touched)
    assert files_with(tmp_path / "store", SECRET) == []
    assert files_with(tmp_path, SECRET) == []
    assert SECRET.encode() not in online_bytes(shop)
    assert shop.lists(others) == before and shop.lists([SECRET]) == [None]
    assert pq.read_table(work / "a.parquet")["user_id"].to_pylist() == others
    live = shop.database.list_versions()[0]
    assert live.version == "2" and live.parent == "1" and live.candidates_sha256
    run_rollback(shop.settings, "1")
    assert shop.lists([SECRET]) == [None] and SECRET.encode() not in online_bytes(shop)
    assert all(len(found) == 5 for found in shop.lists(others))
    # A backup of before: its manifest has another sum than the rewritten one, and is refused.
    for key, data in backup.items():
        shop.storage.write_bytes(key, data)
    run_forgetting(shop.settings, [SECRET], [])
    assert files_with(tmp_path, SECRET) == []


def test_a_forgotten_item_leaves_the_lists_of_all(tmp_path: Path, capsys: Any) -> None:
    shop = sqlite_shop(tmp_path)
    items = names("i", range(6))
    for version in ("1", "2"):
        write_version(shop.storage, version, names("u", range(12)), items, k=5)
        run_publishing(shop.settings, version)
    before = shop.lists(names("u", range(12)))
    assert sum("i3" in found for found in before) > 3
    (tmp_path / "ids").write_text("i3\n\n")
    (tmp_path / "rec_ray.yaml").write_text(json.dumps(shop.settings.model_dump(mode="json", exclude_defaults=True)))

    assert main(["forget", "--items", "--file", str(tmp_path / "ids"), "-C", str(tmp_path), "--json"]) == 0

    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["users"], said["items"], said["republish"]) == (0, 1, "2")
    assert shop.lists(names("u", range(12))) == [[each for each in found if each != "i3"] for found in before]
    assert shop.answers("item_embedding", "model_version", "item_id", items) == ["2", "2", "2", None, "2", "2"]
    run_rollback(shop.settings, "1")
    assert not any("i3" in found for found in shop.lists(names("u", range(12))))
    assert main(["forget", "-C", str(tmp_path)]) == 2


def test_a_run_reads_no_row_of_the_forgotten() -> None:
    import ray.data

    from rec_ray.candidate_store.erasure import Erased
    from rec_ray.contracts import FeatureTables, RowCounts
    from rec_ray.schema import SplitTimes

    events = pa.table({"user_id": ["a", "a", "b"], "item_id": ["i1", None, "i2"]})
    items = pa.table({"item_id": ["i1", "i2"], "price": [1.0, 2.0]})
    now = datetime.now(UTC)
    tables = FeatureTables(
        ray.data.from_arrow(events), ray.data.from_arrow(items), SplitTimes(now, now, now), RowCounts(3, 3)
    )
    left = tables.map_rows(Erased.of(["b"], ["i1"]).without)
    assert left.interactions.take_all() == [{"user_id": "a", "item_id": None}]
    assert left.items.take_all() == [{"item_id": "i2", "price": 2.0}]
