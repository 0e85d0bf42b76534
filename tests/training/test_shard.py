"""Shards of encoded timelines: every row is one worker's, counts by hand, and equal batches in memory and streamed."""

from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from rec_ray.retrieval.features.batch import FeatureShape
from rec_ray.retrieval.features.timelines import QUERIES, TIMELINES
from rec_ray.schema import Split
from rec_ray.training import shard as training_shard
from rec_ray.training.shard import Shard, own_rows, read_rows

TRAIN, VALIDATION, TEST = Split

LOCAL = pyarrow.fs.LocalFileSystem()
SHAPE = FeatureShape(numeric=1)
ITEMS = 9


def write_timelines(folder: Path, sizes: list[int], row_group_size: int = 4) -> None:
    """Users `u0`, `u1`, ... in files of these sizes; user n has n % 5 + 2 events, the last the test's."""
    user = 0
    for number, size in enumerate(sizes):
        rows = []
        for _ in range(size):
            events = user % 5 + 2
            rows.append(
                {
                    "user_id": f"u{user}",
                    "item_index": [(user + place) % ITEMS + 1 for place in range(events)],
                    "event_type": [1] * events,
                    "event_seconds": list(range(events)),
                    "weight": [1.0] * events,
                    "split": [TRAIN] * (events - 2) + [VALIDATION, TEST],
                    "feature_row": [0] * (events + QUERIES),
                    "user_numeric": [float(user)],
                    "user_tokens": [],
                    "user_token_counts": [],
                    "user_vector": [],
                }
            )
            user += 1
        table = pa.Table.from_pylist(rows, schema=TIMELINES)
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=row_group_size)


def shard(folder: Path, *, cache_bytes: int = 10**9, watched: int = 1000, rank: int = 0, world: int = 1) -> Shard:
    return Shard(
        str(folder),
        LOCAL,
        SHAPE,
        items=ITEMS,
        history_length=10,
        cache_bytes=cache_bytes,
        watched_users=watched,
        rank=rank,
        world=world,
    )


@pytest.mark.parametrize("world", [1, 2, 3, 7, 40])
def test_every_row_is_read_by_one_worker_in_the_order_of_the_files(tmp_path: Path, world: int) -> None:
    write_timelines(tmp_path, [11, 1, 0, 13])
    read = []
    for rank in range(world):
        for file, begin, end in own_rows(str(tmp_path), LOCAL, rank, world):
            for table in read_rows(file, LOCAL, begin, end, 3):
                assert 0 < table.num_rows <= 3
                read += table["user_id"].to_pylist()
    assert read == [f"u{user}" for user in range(25)]


def test_counts_by_hand(tmp_path: Path) -> None:
    """Five users with 2 to 6 events: 20 in all, one each in the validation and in the test."""
    write_timelines(tmp_path, [5])
    found = shard(tmp_path)
    # A first event is learned from too: users have features here. User u0 has no event before the validation.
    assert found.events == {VALIDATION: 10, TEST: 15, TEST + 1: 20}
    assert found.positives.sum(axis=1).tolist() == [10, 5, 5]
    assert found.positives[TEST].tolist() == [0, 1, 1, 0, 1, 0, 1, 0, 1, 0]
    assert found.watched is not None and len(found.watched) == 5


def test_a_few_users_are_watched_and_all_workers_together_count_everything(tmp_path: Path) -> None:
    write_timelines(tmp_path, [30, 31])
    parts = [shard(tmp_path, watched=10, rank=rank, world=3) for rank in range(3)]
    watched = [part.watched for part in parts]
    assert [len(timelines) for timelines in watched if timelines is not None] == [4, 4, 4]
    whole = shard(tmp_path)
    assert np.array_equal(sum(part.positives for part in parts), whole.positives)
    assert sum(part.events[VALIDATION] for part in parts) == whole.events[VALIDATION]


def test_who_is_watched_does_not_depend_on_the_order_of_the_rows_and_is_spread_over_all(tmp_path: Path) -> None:
    write_timelines(tmp_path, [400, 400, 200])
    found = shard(tmp_path, watched=100).watched
    assert found is not None and len(found) == 100
    numbers = np.array([int(user.as_py()[1:]) for user in found.user_ids])
    assert 350 < numbers.mean() < 650 and numbers.max() > 900
    whole = pq.read_table(tmp_path)
    backwards = tmp_path / "backwards"
    backwards.mkdir()
    pq.write_table(whole.take(np.arange(whole.num_rows)[::-1]), backwards / "part.parquet", row_group_size=7)
    again = shard(backwards, watched=100).watched
    assert again is not None and again.user_ids.equals(found.user_ids)


def items_of(found: Shard, seed: int) -> list[list[int]]:
    return [batch.target.reshape(-1).tolist() for batch in found.batches(VALIDATION, 8, seed)]


def test_a_seed_gives_the_same_batches_again_and_another_one_others(tmp_path: Path) -> None:
    write_timelines(tmp_path, [40, 40])
    first, again, other = (items_of(shard(tmp_path), seed) for seed in (1, 1, 2))
    assert first == again != other
    assert sorted(chain.from_iterable(first)) == sorted(chain.from_iterable(other))


def test_what_does_not_fit_is_streamed_and_the_same_events_are_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_timelines(tmp_path, [40, 40])
    cached = shard(tmp_path)
    monkeypatch.setattr(training_shard, "STREAMED_TIMELINES", 16)
    streamed = shard(tmp_path, cache_bytes=1)
    assert cached.cached is not None and streamed.cached is None
    assert streamed.events == cached.events

    def positives(found: Shard) -> list[int]:
        return sorted(item for batch in items_of(found, 3) for item in batch if item)

    assert positives(streamed) == positives(cached)
    assert items_of(streamed, 3) == items_of(streamed, 3)
