"""Run ids for `--again`: the id under which a command with a fixed run id starts after an earlier successful run.

Input: a store, settings and a run id. Output: the id, or the first of `<id>-2`, `<id>-3`, ... that is unused or
unfinished. The module reads ledgers and writes nothing.
"""

from __future__ import annotations

from itertools import count

from rec_ray.config import Settings
from rec_ray.runs.ledger import can_continue
from rec_ray.storage.object_store import Storage


def next_run_id(storage: Storage, settings: Settings, command: str, run_id: str) -> str:
    """Return the id of the unfinished run with these settings, or a new id.

    Raises:
        ConfigError: the text is no run id.
        DataError: a ledger was damaged.
        StorageError: the store cannot be read.
    """
    names = (run_id if number == 1 else f"{run_id}-{number}" for number in count(1))
    return next(name for name in names if can_continue(storage, settings, command, name))
