"""Items that nobody was seen with in training are found by their features, on the generated shop with default settings.

Every 20th product has its events before the test taken out; those of the test are then targets. No Ray and no Feast.
"""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from rec_ray.config import InteractionSettings, ModelSettings, TrainSettings
from rec_ray.data.events import as_events, with_query_rows
from rec_ray.retrieval.features.catalogue import Catalogue, catalogue_rows
from rec_ray.retrieval.features.encoding import Labelling, encode_timelines, label_events
from rec_ray.retrieval.features.preprocessing import Preprocessor, collect_statistics, fit_features
from rec_ray.retrieval.features.timelines import Timelines, query_batch, training_windows
from rec_ray.retrieval.learning.learner import Learner, shuffled_batches
from rec_ray.retrieval.metrics.metrics import recall_at_k
from rec_ray.retrieval.model.inference import embed_as_history, embed_catalogue, embed_queries
from rec_ray.retrieval.model.towers import build_two_tower
from rec_ray.retrieval.ragged import take_rows
from rec_ray.retrieval.search import ExactTopK
from rec_ray.sample import shop
from rec_ray.schema import EVENT_TIMESTAMP, EVENT_TYPE, ITEM_ID, USER_ID, Split, SplitTimes

VALIDATION, TEST = Split.VALIDATION, Split.TEST

COLD = 20


MEANING = InteractionSettings(weights={"view": 1.0, "cart": 2.0, "purchase": 3.0}, negative_types=["negative_view"])


def encoded_shop() -> tuple[Timelines, Catalogue, Preprocessor]:
    """The shop as the program encodes it; of users with two versions of their features the first one holds."""
    tables = shop.generate_shop(0, users=1000, items=1000, interactions=40_000)
    times = pc.cast(tables.interactions[EVENT_TIMESTAMP], pa.int64()).to_numpy()
    starts = [datetime.fromtimestamp(q / 1e6, UTC) for q in np.quantile(times, [0.85, 0.9])]
    end = datetime.fromtimestamp(times.max() / 1e6, UTC) + timedelta(seconds=1)
    events = tables.interactions.rename_columns(
        [EVENT_TYPE if name == "interaction_type" else name for name in tables.interactions.column_names]
    )
    cold = pc.is_in(events[ITEM_ID], value_set=tables.items[ITEM_ID].take(pa.array(np.arange(0, 1000, COLD))))
    before = pc.less_equal(events[EVENT_TIMESTAMP], pa.scalar(starts[1]).cast(events[EVENT_TIMESTAMP].type))
    events = as_events(events.filter(pc.invert(pc.and_(cold, before))), 0, end)
    block = with_query_rows(events, [*starts, end])
    users = tables.users.to_pandas().drop_duplicates(USER_ID).set_index(USER_ID)
    features = users.loc[block[USER_ID].to_pylist(), list(shop.USER_FEATURES)].reset_index(drop=True)
    for name in shop.USER_FEATURES:
        block = block.append_column(name, pa.array(features[name].tolist(), tables.users.schema.field(name).type))

    labelling = Labelling.of(MEANING, "time", SplitTimes(*starts, end))
    items = tables.items.sort_by(ITEM_ID)
    ids = items[ITEM_ID].combine_chunks()
    labelled = label_events(block, ids, labelling)
    counts = np.bincount(labelled.item_index[labelled.is_training & (labelled.weight > 0)], minlength=len(ids) + 1)[1:]
    options = {"text_buckets": 16_384, "max_vocabulary": 1000}
    preprocessor = Preprocessor(
        users=fit_features(collect_statistics(block, shop.USER_FEATURES), shop.USER_FEATURES, **options),
        items=fit_features(collect_statistics(items, shop.ITEM_FEATURES), shop.ITEM_FEATURES, **options),
        item_ids=tuple(ids.filter(pa.array(counts > 0)).to_pylist()),
        event_types=("cart", "negative_view", "purchase", "view"),
    )
    rows = catalogue_rows(
        np.arange(1, len(ids) + 1),
        ids,
        preprocessor.encode_item_ids(ids),
        np.ones(len(ids), bool),
        counts,
        preprocessor.items.encode(items),
    )
    timelines = Timelines.from_table(encode_timelines(labelled, preprocessor), preprocessor.users.shape)
    return timelines, Catalogue.from_table(rows, preprocessor.items.shape), preprocessor


@pytest.mark.usefixtures("processes")
def test_items_without_any_training_event_are_recalled_at_50_five_times_as_often_as_by_chance() -> None:
    timelines, catalogue, preprocessor = encoded_shop()
    model, train = ModelSettings(history="mean"), TrainSettings(epochs=5)
    torch.manual_seed(0)
    towers = build_two_tower(
        vocabulary_size=preprocessor.vocabulary_size,
        item_shape=asdict(preprocessor.items.shape),
        user_shape=asdict(preprocessor.users.shape),
        event_types=len(preprocessor.event_types) + 1,
        **model.model_dump(),
    )
    windows = training_windows(timelines, model.history_length, VALIDATION)
    steps = train.epochs * len(shuffled_batches(windows, train.batch_size, 0))
    learner = Learner(towers, catalogue, train, total_steps=steps)
    for epoch in range(1, train.epochs + 1):
        for batch in learner.batches(timelines, windows, epoch):
            learner.step(batch)

    positives, first = timelines.positives(TEST)
    users = np.flatnonzero(np.diff(first) > 0)
    targets, offsets = take_rows(positives, first, users)
    cold = catalogue.count[targets] == 0
    owner = np.repeat(np.arange(len(users)), np.diff(offsets))[cold]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(users)))])
    items = embed_catalogue(towers, learner.catalogue)
    query = query_batch(timelines, users, split=TEST, query=1, history_length=model.history_length)
    queries = embed_queries(towers, query, embed_as_history(towers, learner.catalogue, items))
    ranks = ExactTopK(items.numpy()).target_ranks(queries.numpy(), targets[cold], offsets, allowed=catalogue.known)
    assert cold.sum() > 100, "so many targets that the share of those found is no accident"
    chance = 50 / catalogue.known.sum()
    assert float(np.nanmean(recall_at_k(ranks, offsets, 50))) > 5 * chance
