"""The name of the live version in the store is that of the database, whoever writes last."""

import pytest

from rec_ray.errors import DataError
from rec_ray.publishing.publish import name_live
from rec_ray.storage.live_pointer import LIVE, read_live, read_withdrawn, write_live, write_withdrawn
from rec_ray.storage.object_store import Storage, open_storage


@pytest.fixture
def storage(tmp_path) -> Storage:
    return open_storage(str(tmp_path))


def test_what_is_written_is_read(storage):
    write_live(storage, "3")
    assert read_live(storage) == "3" and storage.folders("two-tower") == []
    assert read_withdrawn(storage, "3") == ()
    write_withdrawn(storage, "3", ["ö", "a"])
    assert read_withdrawn(storage, "3") == ("a", "ö")
    write_withdrawn(storage, "3", [])
    assert read_withdrawn(storage, "3") == ()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "is damaged; run rec-ray publish VERSION again"),
        (b"[3]", "is damaged"),
        (b'{"format_version": 2, "version": "3"}', "has format version 2, this program reads 1; upgrade rec_ray"),
        (None, "does not exist, so no version is known as live"),
    ],
)
def test_a_damaged_or_newer_name_is_refused(storage, data, said):
    if data is not None:
        storage.write_bytes(LIVE, data)
    with pytest.raises(DataError, match=said):
        read_live(storage)


class Database:
    """The live versions that a publisher reads, one after another, while others publish."""

    def __init__(self, *versions):
        self.versions = list(versions)

    def live(self):
        return self.versions.pop(0) if len(self.versions) > 1 else self.versions[0]


def test_a_publisher_that_was_paused_names_the_newer_version(storage):
    """It reads version 1, another run publishes 2, it writes 1, sees 2 and writes that."""
    name_live(storage, Database("1", "2"))
    assert read_live(storage) == "2"
    name_live(storage, Database("2", "3", "4"))
    assert read_live(storage) == "4"
    name_live(storage, Database(None))
    assert read_live(storage) == "4"
