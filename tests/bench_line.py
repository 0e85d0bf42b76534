"""The whole line on the sample shop, and the first three steps at size: `python tests/bench_line.py --only memory`.

Makes projects of the generated shop, runs them in processes of their own and watches the memory of each.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benching import make_shop, run_watched


def load_encode_train(project: Path) -> dict[str, Any]:
    """Do the first three steps of the line on a project, one epoch; return the seconds of each."""
    from rec_ray.config.loading import load_settings
    from rec_ray.logs import configure_logging
    from rec_ray.runs.context import open_context
    from rec_ray.steps import prepare_data, train_model

    configure_logging()
    changes = ["train.epochs=1", "train.refit=off", "model.history=mean", "train.batch_size=8192"]
    settings = load_settings(project / "rec_ray.yaml", changes)
    with open_context(settings) as world:
        train_model(world, prepare_data(world), version="bench")
        return {"steps": {name: round(took, 1) for name, took in world.seconds.items()}}


def bench_memory(interactions: int) -> dict[str, Any]:
    """Load, encode, train one epoch; memory of the driver and of the largest worker."""
    with tempfile.TemporaryDirectory() as temporary:
        project = Path(temporary) / "shop"
        make_shop(project, interactions)
        return {"interactions": interactions, **run_watched([__file__, "--load-encode-train", str(project)])}


def bench_demo() -> dict[str, Any]:
    """The whole line on the generated shop: seconds of each step."""
    with tempfile.TemporaryDirectory() as temporary:
        project = str(Path(temporary) / "demo")
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "rec_ray.cli", "init", project], check=True, capture_output=True)
        made = time.perf_counter()
        command = [sys.executable, "-m", "rec_ray.cli", "run", "-C", project, "--json"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        report = json.loads(done.stdout)
        ended = time.perf_counter()
        metrics = report["evaluation"]["metrics"]
        return {
            "seconds_init": round(made - started, 1),
            "seconds_run": round(ended - made, 1),
            "steps": report["seconds"],
            "recall_over_popularity": round(metrics["model"]["recall@10"] / metrics["popularity"]["recall@10"], 2),
        }


def main() -> None:
    """Print a line of JSON for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=["demo", "memory"])
    parser.add_argument("--interactions", type=int, nargs="+", default=[1_000_000, 5_000_000, 20_000_000])
    parser.add_argument("--load-encode-train", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load_encode_train:
        print(json.dumps(load_encode_train(arguments.load_encode_train)))
        return
    if arguments.only in (None, "demo"):
        print(json.dumps({"demo": bench_demo()}), flush=True)
    if arguments.only in (None, "memory"):
        for interactions in arguments.interactions:
            print(json.dumps({f"memory_{interactions}": bench_memory(interactions)}), flush=True)


if __name__ == "__main__":
    main()
