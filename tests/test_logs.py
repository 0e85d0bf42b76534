"""The log: one line when a step starts and one when it ends, for people and for machines."""

import json
import logging

import pytest

from rec_ray.logs import LOGGER, about, configure_logging, step


def json_lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_step_says_its_start_and_its_end_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    seconds: dict[str, float] = {}
    with step("train", seconds, epochs=3) as log:
        log.add(rows=1234567, version="7", resumed=True)
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


def test_in_a_pod_each_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(as_json=True)
    with step("encode", split="time") as log:
        log.add(rows=5, name="naïve\nline")
    start, end = json_lines(capsys.readouterr().err)
    assert (start["step"], start["event"], start["split"]) == ("encode", "start", "time")
    assert (end["event"], end["rows"], end["name"], end["split"]) == ("end", 5, "naïve\nline", "time")
    assert (end["level"], end["logger"]) == ("INFO", "rec_ray")
    assert isinstance(end["seconds"], float)
    assert str(end["time"]).endswith("Z") and "T" in str(end["time"])


def test_lines_in_a_run_and_a_step_say_which(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(as_json=True)
    with about(run_id="night"):
        with step("train", version="7"):
            LOGGER.info("inside")
        LOGGER.info("between")
    LOGGER.info("after")

    start, inside, end, between, after = json_lines(capsys.readouterr().err)
    assert (start["run_id"], start["step"], start["version"]) == ("night", "train", "7")
    assert (inside["run_id"], inside["step"], inside["version"]) == ("night", "train", "7")
    assert (end["run_id"], end["version"]) == ("night", "7")
    assert between["run_id"] == "night" and "step" not in between
    assert "run_id" not in after


@pytest.mark.parametrize("fault", [ValueError("secret of the user"), KeyboardInterrupt()])
def test_a_step_that_fails_says_so_and_has_no_seconds(capsys: pytest.CaptureFixture[str], fault: BaseException) -> None:
    configure_logging(as_json=True)
    seconds: dict[str, float] = {}
    with pytest.raises(type(fault)), step("publish", seconds):
        raise fault
    _, failed = json_lines(capsys.readouterr().err)
    assert (failed["level"], failed["event"], failed["step"]) == ("ERROR", "failed", "publish")
    assert type(fault).__name__ in str(failed["message"]) and "secret" not in str(failed["message"])
    assert seconds == {}


def test_an_exception_is_a_part_of_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(as_json=True)
    try:
        raise ValueError("broken")
    except ValueError:
        LOGGER.exception("it failed")
    (line,) = json_lines(capsys.readouterr().err)
    assert line["message"] == "it failed"
    assert str(line["error"]).endswith("ValueError: broken")


def test_configuring_twice_does_not_say_things_twice(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    configure_logging(level=logging.WARNING)
    LOGGER.warning("once")
    LOGGER.info("too quiet")
    assert len(capsys.readouterr().err.splitlines()) == 1
