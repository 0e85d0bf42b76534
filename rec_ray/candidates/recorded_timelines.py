"""Record of the timelines that candidates were computed from, stored as one more folder beside the lists.

Input: training data. Output: Parquet parts for the manifest. The next increment compares them with the present events.
"""

from __future__ import annotations

from rec_ray.candidate_store.manifest import TIMELINE_FOLDER, Part
from rec_ray.candidate_store.writer import PartsSink
from rec_ray.contracts import TrainingData
from rec_ray.distributed.parquet_source import read_rows
from rec_ray.schema import USER_TIMELINES
from rec_ray.storage.object_store import Storage


def record_timelines(data: TrainingData, storage: Storage, prefix: str, generation: str) -> dict[str, list[Part]]:
    """Write the summaries of all timelines of the data below the prefix; return the parts."""
    if not data.read_timelines:
        return {}
    sink = PartsSink(storage, prefix, {TIMELINE_FOLDER: USER_TIMELINES}, generation=generation)
    read_rows(storage, data.read_timelines).write_datasink(sink)
    return sink.parts
