import time

import pytest
import ray

from rec_ray.distributed import worker_cache as process_cache
from rec_ray.distributed.worker_cache import once_a_process, shared_value


def test_a_value_is_made_once_for_each_key():
    made = []

    def make(value):
        made.append(value)
        return value

    assert [once_a_process(key, lambda key=key: make(key.upper())) for key in "abab"] == ["A", "B", "A", "B"]
    assert made == ["A", "B"]


def test_nothing_is_a_value_too():
    made = []
    for _ in range(2):
        assert once_a_process("none", lambda: made.append(1)) is None
    assert made == [1]


def test_the_least_recently_used_value_is_dropped_first():
    for key in range(process_cache.KEPT):
        once_a_process(f"used {key}", lambda key=key: key)
    once_a_process("used 0", lambda: pytest.fail("it is kept"))
    once_a_process("one more", lambda: -1)
    kept = ["used 2", "used 3", "used 4", "used 5", "used 0", "one more"]
    assert [once_a_process(key, lambda: pytest.fail("it is kept")) for key in kept] == [2, 3, 4, 5, 0, -1]
    assert once_a_process("used 1", lambda: "made again") == "made again"


def test_what_failed_to_be_made_is_tried_again():
    with pytest.raises(ZeroDivisionError):
        once_a_process("x", lambda: 1 // 0)
    assert once_a_process("x", lambda: 7) == 7


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

    assert shared_value(made_slowly.remote()) == "made"
    with pytest.raises(ZeroDivisionError):
        shared_value(broken.remote())
