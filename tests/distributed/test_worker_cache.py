import time

import pytest
import ray

from rec_ray.distributed import worker_cache as process_cache
from rec_ray.distributed.worker_cache import get_or_create, get_shared


def test_a_value_is_made_once_for_each_key():
    made = []

    def make(value):
        made.append(value)
        return value

    assert [get_or_create(key, lambda key=key: make(key.upper())) for key in "abab"] == ["A", "B", "A", "B"]
    assert made == ["A", "B"]


def test_nothing_is_a_value_too():
    made = []
    for _ in range(2):
        assert get_or_create("none", lambda: made.append(1)) is None
    assert made == [1]


def test_the_least_recently_used_value_is_dropped_first():
    for key in range(process_cache.KEPT):
        get_or_create(f"used {key}", lambda key=key: key)
    get_or_create("used 0", lambda: pytest.fail("it is kept"))
    get_or_create("one more", lambda: -1)
    kept = ["used 2", "used 3", "used 4", "used 5", "used 0", "one more"]
    assert [get_or_create(key, lambda: pytest.fail("it is kept")) for key in kept] == [2, 3, 4, 5, 0, -1]
    assert get_or_create("used 1", lambda: "made again") == "made again"


def test_what_failed_to_be_made_is_tried_again():
    with pytest.raises(ZeroDivisionError):
        get_or_create("x", lambda: 1 // 0)
    assert get_or_create("x", lambda: 7) == 7


@pytest.mark.usefixtures("local_ray")
def test_what_is_not_made_yet_is_waited_for_and_a_failure_is_told(monkeypatch):
    monkeypatch.setattr(process_cache, "PATIENCE_SECONDS", 0.05)

    @ray.remote
    def made_slowly():
        time.sleep(0.5)
        return "made"

    @ray.remote
    def broken():
        time.sleep(0.5)
        raise ZeroDivisionError

    assert get_shared(made_slowly.remote()) == "made"
    with pytest.raises(ZeroDivisionError):
        get_shared(broken.remote())
