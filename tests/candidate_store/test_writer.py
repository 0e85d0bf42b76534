"""The sink of candidates adds up the profile of the lists over the blocks that it writes."""

import functools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rec_ray.candidate_store.writer import PartsSink
from rec_ray.retrieval.profiles.id_sample import SAMPLE
from rec_ray.retrieval.profiles.list_profile import profile_lists
from rec_ray.schema import ITEM_IDS, RECOMMENDATIONS, USER_EMBEDDINGS
from rec_ray.storage.object_store import open_storage

ITEMS = pa.array([f"i{number:03d}" for number in range(500)])


def name_items(rows: pa.Table) -> pa.Table:
    """Replace item indices by ids, as lists of a dictionary."""
    lists = rows["indices"].combine_chunks()
    named = pa.ListArray.from_arrays(lists.offsets, pa.DictionaryArray.from_arrays(lists.values, ITEMS))
    return rows.set_column(rows.column_names.index("indices"), ITEM_IDS, named)


@pytest.mark.parametrize("cut", [1, 400, 999])
def test_the_profile_of_lists_is_that_of_all_blocks(tmp_path: Path, cut: int) -> None:
    random = np.random.default_rng(0)
    lists = [random.choice(500, 12, replace=False).tolist() if number % 10 else [] for number in range(1000)]
    rows = pa.table(
        {
            "user_id": [f"u{number}" for number in range(1000)],
            "embedding": pa.array([[1.0, 2.0]] * 1000, pa.list_(pa.float32())),
            "indices": pa.array(lists, pa.list_(pa.int32())),
            "scores": pa.array([[0.5] * len(each) for each in lists], pa.list_(pa.float32())),
            "method": ["model"] * 1000,
        }
    )
    sink = PartsSink(
        open_storage(str(tmp_path)),
        "made",
        {"user_embeddings": USER_EMBEDDINGS, "recommendations": RECOMMENDATIONS},
        lists="indices",
        prepare=name_items,
        measure=functools.partial(profile_lists, column="indices", k=12, name_items=name_items),
    )
    sink.collect([sink.write_blocks(0, [rows.slice(0, cut)]), sink.write_blocks(1, [rows.slice(cut)])])
    found = sink.measured.finish(500)
    assert (found.users, found.empty, found.short, found.coverage) == (1000, 100, 100, 1.0)
    places = np.bincount([item for each in lists for item in each[:10]], minlength=500)
    assert found.gini == pytest.approx(np.abs(places[:, None] - places).sum() / (2 * 500 * places.sum()), abs=1e-4)
    assert len(found.top) == SAMPLE
