"""Real `rec-ray` processes for tests of faults: started, listened to, held at a place, killed, and waited for."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

HELD, READER = (Path(__file__).with_name(name) for name in ("held.py", "reader.py"))
PATIENCE = 900
"""Seconds that anything may take on a machine with much else to do."""


class Run:
    """A `rec-ray` process; as a context it is gone afterwards, with all that it started."""

    _all: ClassVar[list["Run"]] = []

    def __init__(
        self,
        *arguments: object,
        hold: tuple[str, ...] = (),
        clock: float = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        options = [*(["--clock", str(clock)] if clock else []), *hold, "--"]
        self.process = subprocess.Popen(
            [sys.executable, str(HELD), *options, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
            # A group of its own, to end whatever a killed one leaves behind.
            start_new_session=True,
        )
        self._all.append(self)
        self.errors: list[str] = []
        self.output: list[str] = []
        self._heard: queue.Queue[str | None] = queue.Queue()
        self._listeners = [
            threading.Thread(target=self._listen, args=(self.process.stderr, self.errors), daemon=True),
            threading.Thread(target=self._listen, args=(self.process.stdout, self.output), daemon=True),
        ]
        for listener in self._listeners:
            listener.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in (self.process,):
            if process.poll() is None:
                process.kill()
            process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    @classmethod
    def everything(cls) -> dict[int, str]:
        """What all processes so far have said, by process id."""
        return {run.process.pid: "".join([*run.errors, *run.output]) for run in cls._all}

    def wait_for(self, text: str) -> Self:
        """Wait until a line with a text is heard on standard error."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                line = self._heard.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{text!r} was not heard in time\n{self.said}") from None
            assert line is not None, f"the process ended before {text!r} was heard\n{self.said}"
            if text in line:
                return self

    def release(self) -> Self:
        """Let a held process go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self

    def send(self, how: signal.Signals) -> Self:
        """Send a signal."""
        self.process.send_signal(how)
        return self

    def ended(self, code: int) -> str:
        """Wait for the end, check the exit code and return what was said on standard error."""
        try:
            found = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end in time\n{self.said}") from None
        for listener in self._listeners:
            listener.join(10)
        assert found == code, f"ended with {found}, not {code}\n{self.said}"
        return "".join(self.errors)

    @property
    def said(self) -> str:
        """The end of what was said on standard error."""
        return "".join(self.errors)[-6000:]

    @property
    def report(self) -> Any:
        """The JSON object on standard output."""
        return json.loads("".join(self.output))

    def _listen(self, stream: Any, lines: list[str]) -> None:
        for line in stream:
            lines.append(line)
            if lines is self.errors:
                self._heard.put(line)
        if lines is self.errors:
            self._heard.put(None)


class Reader:
    """A process that reads the live version again and again; see `reader.py`."""

    def __init__(self, project: Path, environment: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(READER), str(project / "rec_ray.yaml")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def close(self) -> list[dict[str, Any]]:
        """End it and return what it has seen."""
        out, _ = self.process.communicate("")
        return [json.loads(line) for line in out.splitlines()]


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"{what} did not come true in time"
        time.sleep(0.1)
