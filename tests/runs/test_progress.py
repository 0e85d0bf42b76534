"""Progress says rows, rows a second and what is left, in lines of a log and as a bar on a terminal."""

import io
import json
import logging
import os
import threading

import pytest
from rich.console import Console

from rec_ray.logs import JsonFormatter, log_context
from rec_ray.runs.progress import progress_line, report_rows, show_progress


@pytest.mark.parametrize(
    ("done", "total", "seconds", "expected"),
    [
        (0, 1000, 0.0, "users: 0 of 1,000, 0 a second, no estimate yet"),
        (0, 1000, 60.0, "users: 0 of 1,000, 0 a second, no estimate yet"),
        (250_000, 1_000_000, 60.0, "users: 250,000 of 1,000,000, 4,167 a second, 0:03:00 left"),
        (1000, 1000, 10.0, "users: 1,000 of 1,000, 100 a second, 0:00:00 left"),
        (1200, 1000, 10.0, "users: 1,200 of 1,000, 120 a second, 0:00:00 left"),
    ],
)
def test_a_line_tells_rows_speed_and_what_is_left(done, total, seconds, expected):
    assert progress_line("users", done, total, seconds) == expected


class Heard(logging.Handler):
    """Keeps the lines, and says when one has a text."""

    def __init__(self, awaited):
        super().__init__()
        self.awaited, self.found, self.lines, self.runs = awaited, threading.Event(), [], set()

    def emit(self, record):
        self.lines.append(record.getMessage())
        self.runs.add(json.loads(JsonFormatter().format(record)).get("run_id"))
        if self.awaited in self.lines[-1]:
            self.found.set()


@pytest.mark.usefixtures("processes")
def test_rows_of_all_tasks_are_added_up_and_a_task_that_is_run_again_begins_anew(local_ray, tmp_path):
    @local_ray.remote(max_retries=3)
    def work(name, file=None):
        report_rows(name, 10)
        if file is not None and not file.exists():
            file.touch()
            os._exit(1)
        report_rows(name, 5)

    logger, heard = logging.getLogger("rec_ray"), Heard("45 of 45")
    level = logger.level
    logger.addHandler(heard)
    logger.setLevel(logging.INFO)
    try:
        with (
            log_context(run_id="night"),
            show_progress("users", 45, console=Console(file=io.StringIO()), line_seconds=0.1) as name,
        ):
            local_ray.get([work.remote(name, tmp_path / "killed"), work.remote(name), work.remote(name)])
            assert heard.found.wait(60), heard.lines
    finally:
        logger.removeHandler(heard)
        logger.setLevel(level)
    assert all("left" in line or "no estimate" in line for line in heard.lines)
    assert heard.runs == {"night"}, "the thread logs with the context of the step that started it"


@pytest.mark.usefixtures("processes")
def test_a_terminal_shows_a_bar(local_ray):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)

    @local_ray.remote
    def work(name):
        report_rows(name, 30)

    with show_progress("candidates: users", 40, console=console, look_seconds=0.05) as name:
        local_ray.get(work.remote(name))
        waited = threading.Event()
        for _ in range(600):
            if "30/40" in screen.getvalue():
                break
            waited.wait(0.1)
    assert "candidates: users" in screen.getvalue() and "30/40" in screen.getvalue()
    assert "/s" in screen.getvalue()
