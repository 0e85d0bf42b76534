"""A stopped command reports whether a version went live, also right after it did."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rec_ray import pipeline
from rec_ray.cli.main import main
from rec_ray.logs import LOGGER
from rec_ray.step_events import step


def stopped_by(how: signal.Signals, level: str, *steps: tuple[str, bool]) -> Callable[..., Any]:
    def run(*_: Any, **__: Any) -> None:
        LOGGER.setLevel(level)
        for name, publishes in steps:
            with step(name, publishes=publishes):
                pass
        with step("next"):
            os.kill(os.getpid(), how)
            signal.sigtimedwait([], 5)

    return run


@pytest.mark.parametrize(
    ("how", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
@pytest.mark.parametrize(
    ("steps", "made"),
    [
        ([("train", False), ("update_features", False)], "nothing was made live"),
        ([("candidates", False), ("any name", True)], "its version was made live before that"),
    ],
)
@pytest.mark.parametrize("level", ["INFO", "CRITICAL"])
def test_a_stopped_command_reports_whether_a_version_went_live_whatever_the_step_name_and_the_log_level(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: signal.Signals,
    code: int,
    word: str,
    level: str,
    steps: list[tuple[str, bool]],
    made: str,
) -> None:
    (tmp_path / "rec_ray.yaml").write_text("")
    monkeypatch.setattr(pipeline, "run_pipeline", stopped_by(how, level, *steps))
    # What a shell starts in the background ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["run", "-C", str(tmp_path), "--run-id", "any"]) == code
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.splitlines()[-1] == f"rec-ray: {word}; {made}"
