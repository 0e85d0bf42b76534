"""Seconds from a command to its answer, for commands that look something up or are refused, as JSON.

    python tests/bench_start.py [--project FOLDER]

Every command is a process of its own. CPU seconds vary less than seconds of the clock on a machine with other work.
`imports` names the heavy packages that a command has imported, by `python -X importtime`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HEAVY = ("torch", "ray", "ray.data", "feast", "duckdb", "ibis", "faiss", "alembic", "sqlalchemy", "pandas", "pyarrow")


def commands_on(user: str, item: str) -> dict[str, tuple[int, Sequence[str]]]:
    """Return the exit code and the words of each command."""
    return {
        "help": (0, ["--help"]),
        "versions": (0, ["versions"]),
        "recommend": (0, ["recommend", user]),
        "similar": (0, ["similar", item]),
        "rollback to no version": (4, ["versions", "rollback", "999"]),
        "rollback to the live version": (0, ["versions", "rollback", "1"]),
        "publish no version": (4, ["publish", "999"]),
        "evaluate no version": (4, ["evaluate", "999"]),
        "candidates of no version": (4, ["candidates", "999"]),
        "a bad run id": (2, ["run", "--run-id", "a/b"]),
    }


def rec_ray(words: Sequence[str], *python: str) -> list[str]:
    """Return the command line of a command of the program."""
    return [sys.executable, *python, "-m", "rec_ray.cli", *words]


def make_project(folder: Path) -> Path:
    """Make a small shop and publish a version of it, trained for one epoch."""
    words = ["--set", "train.epochs=1", "--set", "model.history=mean", "--set", "train.refit=off"]
    subprocess.run(rec_ray(["init", str(folder)]), check=True, stdout=subprocess.DEVNULL)
    subprocess.run(rec_ray(["run", "-C", str(folder), *words]), check=True, stdout=subprocess.DEVNULL)
    return folder


def time_command(words: Sequence[str], code: int) -> tuple[float, float]:
    """Return the seconds of the clock and of the CPU that a command took."""
    started = time.perf_counter()
    process = subprocess.Popen(rec_ray(words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    took = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != code:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}, expected {code}")
    return took, used.ru_utime + used.ru_stime


def heavy_imports(words: Sequence[str]) -> list[str]:
    """Return the heavy packages that a command imports."""
    ran = subprocess.run(
        rec_ray(words, "-X", "importtime"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    imported = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines() if line.startswith("import time:")}
    return [name for name in HEAVY if name in imported]


def bench(project: Path, rounds: int) -> dict[str, Any]:
    """Return median seconds of each command, in turns."""
    shown = json.loads(
        subprocess.check_output(
            rec_ray(["recommend", "--any", "-C", str(project), "--json"]), stderr=subprocess.DEVNULL
        )
    )
    user = shown["title"].removeprefix("Recommendations for user ").split(",")[0]
    commands = commands_on(user, shown["item_ids"][0])
    place = ["-C", str(project)]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, (code, words) in commands.items():
            found[name].append(time_command([*words, *(place if name != "help" else [])], code))
    return {
        name: {
            "seconds": round(statistics.median(took for took, _ in found[name]), 2),
            "cpu_seconds": round(statistics.median(used for _, used in found[name]), 2),
            "imports": heavy_imports([*words, *(place if name != "help" else [])]),
        }
        for name, (_, words) in commands.items()
    }


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--project", type=Path, help="project whose version 1 is live; made for the bench if not given")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = arguments.project or make_project(Path(folder) / "shop")
        print(json.dumps({"start": bench(project, arguments.rounds)}))


if __name__ == "__main__":
    main()
