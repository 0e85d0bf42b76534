"""A reader of versions, as a serving backend is one: asks which version is live, again and again, and loads it.

    python reader.py SETTINGS_FILE

Prints one JSON line when the live version changes and one for whatever is wrong with it, until standard input ends. A
database or a store that is away for a moment is nobody's version and no fault.
"""

import json
import sys
import threading
from pathlib import Path

from rec_ray.candidate_store.manifest import read_manifest
from rec_ray.config.loading import load_settings
from rec_ray.errors import DataError, UnavailableError
from rec_ray.runs.stores import open_object_store, open_version_database
from rec_ray.storage.model_store import find_model, load_model


def main() -> None:
    """Poll until standard input ends."""
    settings = load_settings(Path(sys.argv[1]))
    database, storage = open_version_database(settings), open_object_store(settings)
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    seen, polls = None, 0
    while not ended.wait(0.2):
        try:
            version = database.live()
            if version is None:
                continue
            find_model(version, storage)
            folder = f"two-tower/{version}/candidates"
            manifest = read_manifest(storage, folder)
            for name, parts in manifest.parts.items():
                for part in parts:
                    if not storage.size(f"{folder}/{name}/{part.name}"):
                        raise DataError(f"{name}/{part.name} is not there")
            if version != seen:
                load_model(version, storage)
                seen = version
                print(json.dumps({"live": version}), flush=True)
            polls += 1
        except UnavailableError:
            continue
        except DataError as error:
            print(json.dumps({"fault": str(error)}), flush=True)
    print(json.dumps({"polls": polls}), flush=True)


if __name__ == "__main__":
    main()
