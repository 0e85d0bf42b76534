"""Runs `rec-ray` with its calls held at named places, so that a test can end the process, or a server, exactly there.

    python held.py [--clock SECONDS] [PLACE ...] -- run -C project

A place is `module:function` or `module:Class.method`, with `@TEXT` behind it when only a call with TEXT in one of its
arguments is meant. Where the process comes by for the first time it says `HELD PLACE` on standard error and goes on
when a line comes on standard input. `--clock` sets the clock that rec_ray reads forward or back.
"""

import functools
import importlib
import inspect
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime, tzinfo
from typing import Any


def hold(place: str) -> None:
    """Put a wait in front of a function."""
    address, _, text = place.partition("@")
    module, _, path = address.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    function: Callable[..., Any] = getattr(owner, name)
    waiting = [True]

    @functools.wraps(function)
    def held(*arguments: Any, **named: Any) -> Any:
        values = [argument for argument in (*arguments, *named.values()) if not isinstance(argument, bytes)]
        if waiting and any(text in str(value) for value in values):
            waiting.clear()
            print(f"HELD {place}", file=sys.stderr, flush=True)
            sys.stdin.readline()
        return function(*arguments, **named)

    setattr(owner, name, held)


def shift_clock(seconds: float) -> None:
    """Let every module of rec_ray that reads the clock read another time."""

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.fromtimestamp(time.time() + seconds, tz)

        @classmethod
        def fromisoformat(cls, text: str) -> datetime:  # type: ignore[override]
            return datetime.fromisoformat(text)

    for name, module in list(sys.modules.items()):
        reads = name.startswith("rec_ray.") and getattr(module, "datetime", None) is datetime
        if reads and "datetime.now(" in inspect.getsource(module):
            module.datetime = Shifted  # type: ignore[attr-defined]


if __name__ == "__main__":
    # What a shell starts in the background ignores Ctrl-C, and so does all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    options, arguments = sys.argv[1 : sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1 :]
    if options[:1] == ["--clock"]:
        import rec_ray.pipeline  # noqa: F401  all modules that read the clock

        shift_clock(float(options[1]))
        options = options[2:]
    for place in options:
        hold(place)
    from rec_ray.cli.main import main

    sys.exit(main(arguments))
