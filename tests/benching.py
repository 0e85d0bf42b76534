"""What benches share: a shop at size, the memory of every process of a run, a run in a process of its own, its result.

A bench is a module `tests/bench_NAME.py` that prints lines of JSON, `{name: figures}`, when it is run; `tests/bench.py`
runs them all and keeps what they print.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]


class MemoryWatch:
    """Peak resident memory of a process and of the ones below it, looked at twice a second."""

    def __init__(self, pid: int) -> None:
        self.process = psutil.Process(pid)
        self.driver = 0
        self.workers: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            try:
                self.driver = max(self.driver, self.process.memory_info().rss)
                for child in self.process.children(recursive=True):
                    name = child.name() if child.name().startswith("ray::") else Path(child.name()).name
                    memory = child.memory_info()
                    # Pages of the object store are shared; count what is a process's own.
                    self.workers[name] = max(self.workers.get(name, 0), memory.rss - memory.shared)
            except psutil.Error:
                continue

    def stop(self) -> dict[str, Any]:
        self._stop.set()
        self._thread.join()
        largest = max(self.workers.items(), key=lambda pair: pair[1], default=("none", 0))
        training = max((peak for name, peak in self.workers.items() if "RayTrainWorker" in name), default=0)
        return {
            "driver_peak_mb": round(self.driver / 2**20),
            "training_worker_peak_mb": round(training / 2**20),
            "largest_worker": largest[0],
            "largest_worker_peak_mb": round(largest[1] / 2**20),
        }


def make_shop(folder: Path, interactions: int) -> None:
    """Write a project of the generated shop with as many interactions, 50 a user."""
    from rec_ray.sample import shop, shop_truth
    from rec_ray.sample.project import init_project
    from rec_ray.sample.tables import write_batches

    init_project(folder)
    users = max(2000, interactions // 50)
    truth = shop_truth.draw_truth(0, users, max(1000, users // 5))
    data = folder / "feature_repo" / "data"
    write_batches("users", [shop.describe_users(truth)], data / "users.parquet")
    write_batches("items", [shop.describe_items(truth)], data / "items.parquet")
    write_batches("interactions", shop.generate_interactions(truth, interactions), data / "interactions.parquet")


def last_json(output: str) -> Any:
    """Return the last line of an output that is JSON."""
    for line in reversed(output.splitlines()):
        try:
            return json.loads(line)
        except ValueError:
            continue
    raise SystemExit(f"no line of JSON in {output[-500:]!r}")


def run_watched(arguments: Sequence[str]) -> dict[str, Any]:
    """Run a Python program in a process of its own; return its last line of JSON and the peaks of its memory."""
    command = [sys.executable, *arguments]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    watch = MemoryWatch(running.pid)
    output, _ = running.communicate()
    peaks = watch.stop()
    if running.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {running.returncode}")
    return {**last_json(output), **peaks}
