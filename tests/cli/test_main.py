"""What the command line says of a command that was stopped: the truth, also right after a version went live."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rec_ray import pipeline
from rec_ray.cli.main import main
from rec_ray.logs import step


def stopped_by(how: signal.Signals, *steps: str) -> Callable[..., Any]:
    def run(*_: Any, **__: Any) -> None:
        for name in steps:
            with step(name):
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
        (["train", "candidates"], "nothing was made live"),
        (["candidates", "update_features"], "its version was made live before that"),
    ],
)
def test_a_stopped_command_says_whether_a_version_went_live(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: signal.Signals,
    code: int,
    word: str,
    steps: list[str],
    made: str,
) -> None:
    (tmp_path / "rec_ray.yaml").write_text("")
    monkeypatch.setattr(pipeline, "run_pipeline", stopped_by(how, *steps))
    # What a shell starts in the background ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["run", "-C", str(tmp_path)]) == code
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.splitlines()[-1] == f"rec-ray: {word}; {made}"
