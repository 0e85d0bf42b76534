"""Epochs are one log line each, or live bars on a terminal; reports arrive from another process."""

import io
import logging

import pytest
from rich.console import Console

from rec_ray.runs.epochs import EpochReports, epoch_line, show_epochs
from rec_ray.runs.progress import show_waiting

LEARN = {"stage": "learn", "attempt": 0, "history": "mean", "epoch": 3, "epochs": 8, "seconds": 2.0, "loss": 4.25}
VALIDATED = {**LEARN, "validation_ndcg@10": 0.5}
REFIT = {**LEARN, "stage": "publish", "epoch": 8}


def test_a_line_has_stage_epoch_loss_ndcg_and_the_time_left() -> None:
    line = "training, history mean: epoch 3 of at most 8, loss 4.250, NDCG@10 0.5000, up to 0:00:10 left"
    assert epoch_line(VALIDATED) == line
    assert epoch_line(REFIT) == "refit, history mean: epoch 8 of at most 8, loss 4.250, up to 0:00:00 left"


def reported(local_ray, console, reports):
    @local_ray.remote
    def controller(name):
        for report in reports:
            EpochReports(name).after_report(None, [report, {"of": "another worker"}], None)

    with show_epochs(console=console) as name:
        local_ray.get(controller.remote(name))


def test_every_epoch_is_one_log_line_in_order(local_ray, caplog: pytest.LogCaptureFixture) -> None:
    reports = [{**VALIDATED, "epoch": number} for number in range(1, 9)] + [REFIT]
    with caplog.at_level(logging.INFO, "rec_ray"):
        reported(local_ray, Console(file=io.StringIO()), reports)
    assert caplog.messages == [epoch_line(report) for report in reports]


def test_a_terminal_shows_a_bar_for_each_stage(local_ray, caplog: pytest.LogCaptureFixture) -> None:
    screen = io.StringIO()
    with caplog.at_level(logging.INFO, "rec_ray"):
        reported(local_ray, Console(file=screen, force_terminal=True, width=120), [LEARN, VALIDATED, REFIT])
    text = screen.getvalue()
    for part in ("training, history mean", "3/8", "NDCG@10 0.5000", "up to 0:00:10 left", "refit, history mean", "8/8"):
        assert part in text
    assert not caplog.messages


def test_the_awaited_service_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "rec_ray"), show_waiting("starting Ray", console=Console(file=io.StringIO())):
        assert caplog.messages == ["starting Ray"]
    screen = io.StringIO()
    with show_waiting("starting Ray", console=Console(file=screen, force_terminal=True)):
        pass
    assert "starting Ray" in screen.getvalue()
