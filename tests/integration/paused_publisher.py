"""A publisher for tests of pauses and kills: does what each line of standard input says, in this one process.

    python paused_publisher.py SETTINGS_FILE

A line is `publish 1`, `rollback 1`, `prune 2`, `forget u1` or `candidates 1`. Prints `ready`, then `begin` and one line
with the outcome for each. It starts no Ray: every online store is written by this process, so that a test can stop all
that writes with one signal.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

from rec_ray.candidate_store.manifest import PENDING, Part, new_generation, read_manifest, write_manifest
from rec_ray.config.loading import load_settings
from rec_ray.errors import RecRayError
from rec_ray.publishing import push as update_features
from rec_ray.publishing.commit_candidates import commit_candidates
from rec_ray.publishing.forget import forget
from rec_ray.publishing.prune import prune_versions
from rec_ray.publishing.publish import Publisher, publish_version, roll_back
from rec_ray.runs.context import describe_owner, open_feature_store
from rec_ray.runs.ledger import new_run_id
from rec_ray.runs.stores import open_object_store, open_version_database
from rec_ray.storage.model_store import candidates_folder


def open_publisher(settings_file: Path) -> Publisher:
    """Return what a publication needs, without Ray."""
    settings = load_settings(settings_file)
    update_features.SINGLE_WRITERS = ("sqlite", "postgres", "redis")
    return Publisher(
        open_feature_store(settings),
        open_object_store(settings),
        open_version_database(settings),
        settings.publish,
        settings.search,
        settings.feast,
        describe_owner("test"),
        new_run_id(),
    )


def recompute(publisher: Publisher, version: str) -> None:
    """Write the candidates of a version anew, as other parts with the same rows, and make them those of the version."""
    storage, prefix = publisher.storage, candidates_folder(version)
    before, generation = read_manifest(storage, prefix), new_generation()
    parts: dict[str, tuple[Part, ...]] = {}
    for folder, each in before.parts.items():
        for part in each:
            name = f"{generation}/{part.name.rpartition('/')[2]}"
            storage.write_checked(f"{prefix}/{folder}/{name}", storage.read_bytes(f"{prefix}/{folder}/{part.name}"))
            parts[folder] = (*parts.get(folder, ()), dataclasses.replace(part, name=name))
    new = dataclasses.replace(before, parts=parts, generation=generation, format_version=2)
    write_manifest(storage, prefix, new, PENDING)
    commit_candidates(storage, publisher.database, version, prefix, publisher.lock())


def do(publisher: Publisher, command: str, value: str) -> None:
    """Do one line."""
    if command == "prune":
        with publisher.lock() as lock:
            prune_versions(publisher.storage, publisher.database, lock, int(value))
        return
    commands: dict[str, Callable[[], object]] = {
        "publish": lambda: publish_version(publisher, value),
        "rollback": lambda: roll_back(publisher, value),
        "forget": lambda: forget(publisher, [value], []),
        "candidates": lambda: recompute(publisher, value),
    }
    commands[command]()


def main() -> None:
    """Do what standard input says until it ends."""
    publisher = open_publisher(Path(sys.argv[1]))
    print("ready", flush=True)
    for line in sys.stdin:
        print("begin", flush=True)
        try:
            do(publisher, *line.split())
            print(json.dumps({"done": line.strip()}), flush=True)
        except RecRayError as error:
            print(json.dumps({"error": type(error).__name__, "said": str(error)}), flush=True)


if __name__ == "__main__":
    main()
