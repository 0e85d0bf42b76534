"""Candidates whose tasks ask Ray for shares of a GPU are those of the processor.

Ray hands out the GPU that it was told of; what computes is the processor, which a hook puts in the place of the device
here and in every worker. The search and the towers on a real GPU are in `bench_gpu.py`.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("processes")
TESTS = Path(__file__).resolve().parents[1]
RUN = """
import json, sys
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import pyarrow.parquet as pq
import ray
from bench_candidates import EVENTS, make_bundle, make_items, make_users

from rec_ray.candidates.generate import generate_candidates
from rec_ray.config import CandidateSettings
from rec_ray.contracts import RowCounts, TrainingData
from rec_ray.schema import SplitTimes
from rec_ray.storage.object_store import open_storage
from rec_ray.distributed.runtime import open_ray


def compute_on_the_processor():
    CandidateSettings.device = "cpu"


compute_on_the_processor()
folder, users, items = Path(sys.argv[2]), 400, 300
make_items(folder / "catalogue", items)
make_users(folder / "timelines", users, items, part_users=200)
hook = {"worker_process_setup_hook": compute_on_the_processor}
ray.init(num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, runtime_env=hook)
now = datetime(2024, 1, 1, tzinfo=UTC)
bundle = make_bundle(items, "mean")
data = TrainingData(
    str(folder / "timelines"), str(folder / "catalogue"), str(folder / "catalogue"), bundle.preprocessor, users, items,
    users * EVENTS, users * EVENTS, SplitTimes(now, now, now), RowCounts(users * EVENTS, users * EVENTS),
)
found = {}
for name, ways in {"cpu": {}, "gpu": {"use_gpu": True, "gpu_share": 0.5}}.items():
    settings = CandidateSettings(k=10, similar_items=5, precision="float32", **ways)
    storage = open_storage(str(folder / "store"))
    generate_candidates(data, bundle, settings, storage, version="1", prefix=name)
    tables = (pq.read_table(folder / "store" / name / part) for part in ("recommendations", "similar_items"))
    found[name] = [table.sort_by(table.column_names[0]).to_pylist() for table in tables]
print(json.dumps({"same": found["cpu"] == found["gpu"], "users": len(found["gpu"][0]), "items": len(found["gpu"][1])}))
"""


def test_shares_of_a_gpu_give_the_same_lists(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, str(TESTS), str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert json.loads(ran.stdout.splitlines()[-1]) == {"same": True, "users": 400, "items": 300}
