"""`load_features` alone, warm: `python tests/bench_features.py --interactions 1000000`.

Makes a project of the generated shop and joins it three times in one Ray; the first time starts workers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benching import make_shop


def main() -> None:
    """Print the seconds of each time as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--interactions", type=int, default=1_000_000)
    arguments = parser.parse_args()
    from rec_ray.config.loading import load_settings
    from rec_ray.data.load_features import load_features
    from rec_ray.runs.context import open_context

    with tempfile.TemporaryDirectory() as temporary:
        project = Path(temporary) / "shop"
        make_shop(project, arguments.interactions)
        settings = load_settings(project / "rec_ray.yaml")
        seconds = []
        with open_context(settings) as world:
            for _ in range(3):
                started = time.perf_counter()
                tables = load_features(
                    world.store,
                    settings.feast,
                    settings.features,
                    settings.evaluation,
                    as_of=datetime.now(UTC),
                    candidates=settings.candidates,
                )
                rows = tables.interactions.materialize().count() + tables.items.materialize().count()
                seconds.append(round(time.perf_counter() - started, 2))
    print(json.dumps({"rows": rows, "seconds": seconds}))


if __name__ == "__main__":
    main()
