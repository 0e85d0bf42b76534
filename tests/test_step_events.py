"""Steps: two log lines, typed events for every subscriber, and seconds that add up."""

import logging

import pytest
from test_logs import json_lines

from rec_ray.logs import LOGGER, configure_logging
from rec_ray.step_events import StepEvent, StepFailed, StepFinished, StepStarted, step, subscribe, unsubscribe


def test_a_step_logs_its_start_and_its_end_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    seconds: dict[str, float] = {}
    with step("train", seconds, epochs=3) as running:
        running.add(rows=1234567, version="7", resumed=True)
    captured = capsys.readouterr()
    first, last = captured.err.splitlines()
    assert first.endswith("INFO    train ..., epochs 3")
    assert last.endswith("INFO    train done in 0.0 s, rows 1,234,567, version 7, resumed True")
    assert captured.out == ""
    assert list(seconds) == ["train"] and 0 < seconds["train"] < 1


def test_seconds_of_a_step_that_runs_twice_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    seconds = {"push": 100.0}
    with step("push", seconds):
        pass
    assert 100 < seconds["push"] < 101


def test_in_a_pod_the_lines_of_a_step_carry_its_facts(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(as_json=True)
    with step("encode", split="time", version="7") as running:
        LOGGER.info("inside")
        running.add(rows=5, name="naïve\nline")
    LOGGER.info("after")
    start, inside, end, after = json_lines(capsys.readouterr().err)
    assert (start["step"], start["event"], start["split"]) == ("encode", "start", "time")
    assert (inside["step"], inside["version"]) == ("encode", "7") and "step" not in after
    assert (end["event"], end["rows"], end["name"], end["split"]) == ("end", 5, "naïve\nline", "time")
    assert isinstance(end["seconds"], float)


@pytest.mark.parametrize("fault", [ValueError("secret of the user"), KeyboardInterrupt()])
def test_a_failed_step_logs_the_kind_of_error_and_has_no_seconds(
    capsys: pytest.CaptureFixture[str], fault: BaseException
) -> None:
    configure_logging(as_json=True)
    seconds: dict[str, float] = {}
    with pytest.raises(type(fault)), step("publish", seconds):
        raise fault
    _, failed = json_lines(capsys.readouterr().err)
    assert (failed["level"], failed["event"], failed["step"]) == ("ERROR", "failed", "publish")
    assert type(fault).__name__ in str(failed["message"]) and "secret" not in str(failed["message"])
    assert seconds == {}


def test_subscribers_get_typed_events_at_every_log_level(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level=logging.CRITICAL)
    seen: list[StepEvent] = []
    subscribe(seen.append)
    fault = ValueError("broken")
    try:
        with step("make", publishes=True, version="7") as running:
            running.add(rows=3)
            running.result = (1, 2)
        with pytest.raises(ValueError), step("break"):
            raise fault
    finally:
        unsubscribe(seen.append)
    with step("after"):
        pass
    started, finished, _, failed = seen
    assert started == StepStarted("make", {"version": "7"})
    assert isinstance(finished, StepFinished) and isinstance(failed, StepFailed)
    assert (finished.name, finished.facts, finished.result) == ("make", {"version": "7", "rows": 3}, (1, 2))
    assert (finished.publishes, failed.publishes, failed.name, failed.error) == (True, False, "break", fault)
    assert finished.seconds >= 0 and capsys.readouterr().err == ""


def test_a_failing_subscriber_is_logged_and_stops_neither_the_step_nor_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging()
    seen: list[StepEvent] = []

    def broken(event: StepEvent) -> None:
        raise ValueError(f"no {event.name}")

    subscribe(broken)
    subscribe(seen.append)
    try:
        with step("make"):
            pass
    finally:
        unsubscribe(broken)
        unsubscribe(seen.append)
    assert [type(event) for event in seen] == [StepStarted, StepFinished]
    assert "a subscriber to step events failed on StepStarted of make" in capsys.readouterr().err
