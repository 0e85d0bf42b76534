"""Every bench one after another, kept as JSON: `make bench`, or `python tests/bench.py top_k candidates`.

Each `tests/bench_NAME.py` is a program of its own with sizes as options; this one runs them in processes of their own,
collects the lines of JSON that they print and goes on when one fails, to say so at the end. Ratios are of one run on
one machine; nothing here is a test.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BENCHES = {path.stem.removeprefix("bench_"): path for path in sorted((ROOT / "tests").glob("bench_*.py"))}


def run_bench(name: str) -> tuple[dict[str, Any], int]:
    """Run one bench; return what it printed as JSON and its exit status."""
    command = [sys.executable, str(BENCHES[name])]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    figures: dict[str, Any] = {}
    assert running.stdout is not None
    for line in running.stdout:
        print(line, end="", flush=True)
        try:
            figures |= json.loads(line)
        except ValueError:
            continue
    return figures, running.wait()


def main() -> None:
    """Run the benches asked for and write one JSON file; what an earlier call found of others stays in it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", choices=[*BENCHES, []], help="all when none is named")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench.json")
    arguments = parser.parse_args()
    kept: dict[str, Any] = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    failed = []
    for name in arguments.names or BENCHES:
        started = time.perf_counter()
        figures, status = run_bench(name)
        if status:
            failed.append(name)
            continue
        kept[name] = {**figures, "seconds": round(time.perf_counter() - started, 1)}
        kept["machine"] = {
            "architecture": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
