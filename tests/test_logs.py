"""Log lines for people and for machines: JSON in a pod, context, and no line twice."""

import contextvars
import json
import logging
from threading import Thread

import pytest

from rec_ray.logs import LOGGER, configure_logging, log_context


def json_lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_in_a_pod_each_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(as_json=True)
    LOGGER.info("naïve\nline %d", 5, extra={"fields": {"rows": 5}})
    (line,) = json_lines(capsys.readouterr().err)
    assert (line["message"], line["rows"]) == ("naïve\nline 5", 5)
    assert (line["level"], line["logger"]) == ("INFO", "rec_ray")
    assert str(line["time"]).endswith("Z") and "T" in str(line["time"])


def test_lines_of_a_block_carry_its_context(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(as_json=True)
    with log_context(run_id="night"):
        with log_context(step="train", version="7"):
            LOGGER.info("inside")
        LOGGER.info("between")
    LOGGER.info("after")
    inside, between, after = json_lines(capsys.readouterr().err)
    assert (inside["run_id"], inside["step"], inside["version"]) == ("night", "train", "7")
    assert between["run_id"] == "night" and "step" not in between
    assert "run_id" not in after


def test_two_threads_have_contexts_of_their_own_and_one_can_take_over_that_of_its_maker(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(as_json=True)
    with log_context(run_id="night"):
        alone = Thread(target=LOGGER.info, args=("alone",))
        inheriting = Thread(target=contextvars.copy_context().run, args=(LOGGER.info, "inherited"))
        for thread in (alone, inheriting):
            thread.start()
            thread.join()
    first, second = json_lines(capsys.readouterr().err)
    assert "run_id" not in first and second["run_id"] == "night"


def test_an_exception_is_a_part_of_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(as_json=True)
    try:
        raise ValueError("broken")
    except ValueError:
        LOGGER.exception("it failed")
    (line,) = json_lines(capsys.readouterr().err)
    assert line["message"] == "it failed"
    assert str(line["error"]).endswith("ValueError: broken")


def test_configuring_twice_logs_a_line_once(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    configure_logging(level=logging.WARNING)
    LOGGER.warning("once")
    LOGGER.info("too quiet")
    assert len(capsys.readouterr().err.splitlines()) == 1
