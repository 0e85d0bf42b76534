"""Training with Ray Train learns the groups of the tiny data, refits, goes on where it was killed, and ends well."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rec_ray.config import ModelSettings, RaySettings, TrainSettings
from rec_ray.errors import DataError, RecRayError
from rec_ray.retrieval.features.catalogue import Catalogue
from rec_ray.retrieval.features.timelines import Timelines, query_batch
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.retrieval.model.inference import embed_as_history, embed_catalogue, embed_queries
from rec_ray.schema import Split
from rec_ray.storage.object_store import open_storage

TRAIN, VALIDATION, TEST = Split

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.usefixtures("local_ray")]

# Everything that can be drawn is: dropout, hidden ids, negatives, the order of batches.
MODEL = ModelSettings(history="mean", embedding_size=16, dropout=0.1, id_dropout=0.1)
TRAINING = TrainSettings(
    epochs=3, learning_rate=0.03, batch_size=64, uniform_negatives=20, refit="continue", refit_epochs=2, max_failures=0
)


def train(tiny, folder, run_id, training=TRAINING, live=None, **changes):
    """Train on the tiny data and keep checkpoints in `folder`; the encoded data are read where they are."""
    from rec_ray.training.trainer import train_two_tower

    return train_two_tower(
        tiny.data,
        MODEL,
        training.model_copy(update=changes),
        RaySettings(),
        open_storage(str(folder)),
        run_id=run_id,
        validation_users=1000,
        exclude_seen=True,
        metadata={"made by": "a test"},
        live=live,
    )


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    return train(tiny_data, tmp_path_factory.mktemp("trained"), "whole")


def chance(tiny):
    """Return the NDCG@10 that a ranking of unseen items at random has on average, over the validation's users."""
    found = []
    for row in pq.read_table(tiny.data.timelines, filesystem=tiny.storage.filesystem).to_pylist():
        events = list(zip(row["item_index"], row["split"], row["weight"], strict=True))
        seen = {item for item, split, _ in events if split == TRAIN}
        targets = {item for item, split, weight in events if split == VALIDATION and weight > 0} - seen
        if targets:
            places = 61 - len(seen)
            gains = 1 / np.log2(np.arange(2, 2 + min(10, places)))
            found.append(len(targets) / places * gains.sum() / gains[: len(targets)].sum())
    return float(np.mean(found))


def test_it_learns(trained, tiny_data):
    losses = [epoch.loss for epoch in trained.epochs]
    assert [epoch.epoch for epoch in trained.epochs] == [1, 2, 3]
    assert losses[0] > losses[1] > losses[2] > 0
    best = trained.epochs[trained.best_epoch - 1].validation_ndcg
    assert best == max(epoch.validation_ndcg for epoch in trained.epochs)
    assert best > 3 * chance(tiny_data)
    assert all(epoch.examples_per_second > 0 for epoch in trained.epochs)


def test_the_bundle_is_that_of_the_best_epoch_and_embeds(trained, tiny_data):
    """Items of a group lie together, though nothing but events and features said so."""
    bundle = TwoTowerBundle.from_files(trained.bundle.to_files())
    assert bundle.metadata["made by"] == "a test"
    assert bundle.metadata["best_epoch"] == trained.best_epoch
    assert [epoch["loss"] for epoch in bundle.metadata["epochs"]] == [epoch.loss for epoch in trained.epochs]
    table = pq.read_table(tiny_data.data.catalogue, filesystem=tiny_data.storage.filesystem)
    catalogue = Catalogue.from_table(table, bundle.preprocessor.items.shape)
    vectors = embed_catalogue(bundle.model, catalogue).numpy()[1:]
    assert vectors.shape == (62, 16)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(62), abs=1e-5)
    names = catalogue.item_ids.to_pylist()
    chosen = [place for place, name in enumerate(names) if name.startswith("i")]
    group = np.array([int(names[place][1:]) % 4 for place in chosen])
    likeness = vectors[chosen] @ vectors[chosen].T
    same = (group[:, None] == group[None, :]) & ~np.eye(60, dtype=bool)
    assert 1 - likeness[same].mean() < 0.6 * (1 - likeness[group[:, None] != group[None, :]].mean())


def item_scores(bundle, tiny, user):
    """Return the scores of all items, with their features of now, for a user as of the test, by item id."""
    data = tiny.data
    catalogue = Catalogue.from_table(
        pq.read_table(data.catalogue_now, filesystem=tiny.storage.filesystem), bundle.preprocessor.items.shape
    )
    table = pq.read_table(data.timelines, filesystem=tiny.storage.filesystem)
    timelines = Timelines.from_table(table, bundle.preprocessor.users.shape)
    place = timelines.user_ids.to_pylist().index(user)
    items = embed_catalogue(bundle.model, catalogue)
    batch = query_batch(timelines, np.array([place]), split=TEST, query=1, history_length=50)
    history = embed_as_history(bundle.model, catalogue, items)
    scores = items[1:] @ embed_queries(bundle.model, batch, history)[0]
    return dict(zip(catalogue.item_ids.to_pylist(), scores.tolist(), strict=True))


def test_what_is_published_has_learned_from_the_held_out_events_and_what_is_evaluated_has_not(trained, tiny_data):
    """`late` has no event before the test, where `u0` and `u1` take it; `new` has the same features and no event."""
    rows = [
        bundle.model.item_tower.ids.weight.detach()[
            [0, int(bundle.preprocessor.encode_item_ids(pa.array(["late"]))[0])]
        ]
        for bundle in (trained.bundle, trained.checked, trained.published)
    ]
    assert torch.equal(rows[0][0], rows[0][1]) and torch.equal(rows[1][0], rows[1][1])
    assert not torch.equal(rows[2][0], rows[2][1])
    before, after = (item_scores(bundle, tiny_data, "u0") for bundle in (trained.bundle, trained.published))
    assert before["late"] == pytest.approx(before["new"], abs=1e-5)
    assert abs(after["late"] - after["new"]) > 1e-3
    assert trained.published.evaluated is trained.bundle.model
    weights = [bundle.model.state_dict() for bundle in (trained.bundle, trained.checked, trained.published)]
    assert not torch.equal(weights[0]["item_tower.ids.weight"], weights[1]["item_tower.ids.weight"])
    assert trained.published.metadata["refit"] == "continue"


def test_a_full_refit_begins_anew_and_ends_at_the_best_epoch(trained, tiny_data, tmp_path):
    full = train(tiny_data, tmp_path, "full", refit="full", averaging=1.0)

    assert full.published.metadata["refit"] == "full"
    assert full.bundle.metadata["epochs"][0]["loss"] == trained.bundle.metadata["epochs"][0]["loss"]
    # Each stage has about the steps of its epochs: three, and twice those up to the best.
    of_an_epoch = trained.facts.steps / (3 + 2 * 2)
    assert full.facts.steps == pytest.approx(of_an_epoch * (3 + 2 * full.best_epoch), rel=0.1)
    scores = item_scores(full.published, tiny_data, "u0")
    assert abs(scores["late"] - scores["new"]) > 1e-3
    in_group = [score for item, score in scores.items() if item.startswith("i") and int(item[1:]) % 4 == 0]
    others = [score for item, score in scores.items() if item.startswith("i") and int(item[1:]) % 4]
    assert np.mean(in_group) > np.mean(others) + 0.2


DEATHS = (("learn", 2), ("publish", 1))
"""Stages and epochs in the middle of which a worker dies, once each."""


def test_a_run_that_was_killed_goes_on_as_if_it_had_not(trained, tiny_data, tmp_path, monkeypatch):
    """The first death ends the run, which is started again under its id; the second worker is replaced."""
    marks = str(tmp_path)

    def loop_that_dies(config):
        import os
        from pathlib import Path

        from rec_ray.training import worker as training_loop

        batches = training_loop.Shard.batches

        def batches_until_death(self, max_split, batch_size, seed, *, ahead):
            stage, epoch = {1: "learn", 2: "check", 3: "publish"}[max_split], seed % 1000
            for number, batch in enumerate(batches(self, max_split, batch_size, seed, ahead=ahead)):
                mark = Path(marks) / f"{stage} {epoch}"
                if number == 3 and (stage, epoch) in deaths and not mark.exists():
                    mark.touch()
                    os._exit(1)
                yield batch

        training_loop.Shard.batches = batches_until_death
        training_loop.train_loop_per_worker(config)

    deaths = DEATHS
    monkeypatch.setattr("rec_ray.training.trainer.train_loop_per_worker", loop_that_dies)
    with pytest.raises(RecRayError, match="training failed"):
        train(tiny_data, tmp_path, "killed")
    assert [(tmp_path / f"{stage} {epoch}").exists() for stage, epoch in DEATHS] == [True, False]
    whole = train(tiny_data, tmp_path, "killed", max_failures=1)
    assert all((tmp_path / f"{stage} {epoch}").exists() for stage, epoch in DEATHS)
    figures = [(epoch.epoch, epoch.loss, epoch.validation_ndcg) for epoch in whole.epochs]
    assert figures == [(epoch.epoch, epoch.loss, epoch.validation_ndcg) for epoch in trained.epochs]
    assert whole.facts.steps == trained.facts.steps
    for mine, theirs in ((whole.bundle, trained.bundle), (whole.published, trained.published)):
        expected = theirs.model.state_dict()
        for name, found in mine.model.state_dict().items():
            assert torch.equal(found, expected[name]), name


def test_a_warm_start_begins_where_the_live_version_was(trained, tiny_data, tmp_path):
    """One epoch at a small rate: from counts alone the loss is near chance, from the live version near its loss."""
    little = {"epochs": 1, "learning_rate": 1e-4, "refit": "off"}
    cold = train(tiny_data, tmp_path, "cold", **little)
    warm = train(tiny_data, tmp_path, "warm", live=trained.published, **little)
    best = trained.epochs[trained.best_epoch - 1].validation_ndcg
    assert warm.epochs[0].validation_ndcg > 0.9 * best
    assert cold.epochs[0].loss > 0.95 * cold.epochs[0].chance
    assert warm.epochs[0].loss < 0.95 * warm.epochs[0].chance
    assert (warm.bundle.metadata["warm_start"], cold.bundle.metadata["warm_start"]) == ("live", "off")
    assert cold.published is cold.bundle and cold.checked is None


def test_a_loss_that_is_not_finite_is_a_fault_of_the_data_with_advice(tiny_data, tmp_path):
    with pytest.raises(DataError, match=r"^the loss became (nan|inf) at step 0; try a smaller train.learning_rate"):
        train(tiny_data, tmp_path, "absurd", temperature=1e-42)


TWO_WORKERS = """
import json, pickle, sys
from rec_ray.config import RaySettings
from rec_ray.storage.object_store import open_storage
from rec_ray.training.trainer import train_two_tower
from rec_ray.distributed.runtime import open_ray

with open(sys.argv[1], "rb") as file:
    data, model, train = pickle.load(file)
open_ray(RaySettings(num_cpus=4, object_store_memory=200_000_000))
made = train_two_tower(
    data, model, train, RaySettings(), open_storage(sys.argv[2]),
    run_id="two", validation_users=1000, exclude_seen=True, metadata={},
)
epochs = [(epoch.loss, epoch.validation_ndcg, epoch.examples_per_second * epoch.seconds) for epoch in made.epochs]
print(json.dumps({"epochs": epochs, "steps": made.facts.steps}))
"""


def test_two_workers_go_in_step_and_learn(tiny_data, trained, tmp_path):
    """In a Ray of its own: two workers and the reading of data need more logical CPUs than the tests' Ray has.

    Each step waits for both workers, so a run in which one did a step more would never end.
    """
    given = tmp_path / "given.pickle"
    given.write_bytes(
        pickle.dumps(
            (tiny_data.data, MODEL, TRAINING.model_copy(update={"num_workers": 2, "epochs": 2, "refit_epochs": 1}))
        )
    )
    done = subprocess.run(
        [sys.executable, "-c", TWO_WORKERS, str(given), str(tmp_path / "store")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    made = json.loads(done.stdout.splitlines()[-1])
    (first, _, _), (second, ndcg, _) = made["epochs"]
    assert second < first
    assert ndcg > 2 * chance(tiny_data)
    # Both together read what one worker reads, but for the last batches that only one of them has.
    seen = [positives / tiny_data.data.positives for _, _, positives in made["epochs"]]
    assert all(0.8 < share <= 1.0 + 1e-6 for share in seen)
    # Three epochs and twice two of refitting alone; two epochs and twice one together.
    alone = trained.facts.steps / 7
    assert 0.35 * alone < made["steps"] / 4 < 0.65 * alone + 1
