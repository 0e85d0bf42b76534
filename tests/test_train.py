"""Training with Ray Train learns the groups of the tiny data, repeats itself, goes on where it stopped, ends well."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rec_ray.config import ModelSettings, RaySettings, TrainSettings
from rec_ray.contracts import TRAIN, VALIDATION
from rec_ray.errors import DataError
from rec_ray.retrieval.bundle import TwoTowerBundle
from rec_ray.retrieval.catalogue import Catalogue
from rec_ray.retrieval.learning import embed_catalogue
from rec_ray.storage import open_storage

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("local_ray")]

# Without dropout, and with all items as candidates, nothing is drawn: a run that went on equals one that never stopped.
MODEL = ModelSettings(history="mean", embedding_size=16, dropout=0.0, id_dropout=0.0)
TRAINING = TrainSettings(epochs=3, learning_rate=0.03, batch_size=64, max_failures=0)


def train(tiny, folder, run_id, training=TRAINING, **changes):
    """Train on the tiny data and keep checkpoints in `folder`; the encoded data are read where they are."""
    from rec_ray.train import train_two_tower

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
    assert likeness[same].mean() > likeness[group[:, None] != group[None, :]].mean() + 0.15


def test_a_run_that_stopped_goes_on_as_if_it_had_not_and_the_seed_repeats_it(trained, tiny_data, tmp_path):
    """A patience of nought, which no settings allow, stops the run after its first epoch."""
    stopped = train(tiny_data, tmp_path, "stopped", patience=0)
    assert [epoch.epoch for epoch in stopped.epochs] == [1]
    assert stopped.epochs[0].loss == trained.epochs[0].loss
    whole = train(tiny_data, tmp_path, "stopped")
    assert whole.epochs[0] == stopped.epochs[0], "its seconds too: it was not done again"
    figures = [(epoch.epoch, epoch.loss, epoch.validation_ndcg) for epoch in whole.epochs]
    assert figures == [(epoch.epoch, epoch.loss, epoch.validation_ndcg) for epoch in trained.epochs]
    assert whole.facts == trained.facts
    expected = trained.bundle.model.state_dict()
    for name, found in whole.bundle.model.state_dict().items():
        assert torch.equal(found, expected[name]), name


def test_a_loss_that_is_not_finite_is_a_fault_of_the_data_with_advice(tiny_data, tmp_path):
    with pytest.raises(DataError, match=r"^the loss became (nan|inf) at step 0; try a smaller train.learning_rate"):
        train(tiny_data, tmp_path, "absurd", temperature=1e-42)


TWO_WORKERS = """
import json, pickle, sys
from rec_ray.config import RaySettings
from rec_ray.storage import open_storage
from rec_ray.train import train_two_tower
from rec_ray.world import open_ray

with open(sys.argv[1], "rb") as file:
    data, model, train = pickle.load(file)
open_ray(RaySettings(num_cpus=4, object_store_memory=200_000_000))
made = train_two_tower(
    data, model, train, RaySettings(), open_storage(sys.argv[2]),
    run_id="two", validation_users=1000, exclude_seen=True, metadata={},
)
epochs = [(epoch.loss, epoch.validation_ndcg, epoch.examples_per_second * epoch.seconds) for epoch in made.epochs]
print(json.dumps({"epochs": epochs, "steps": made.facts["steps"]}))
"""


def test_two_workers_go_in_step_and_learn(tiny_data, trained, tmp_path):
    """In a Ray of its own: two workers and the reading of data need more logical CPUs than the tests' Ray has.

    Each step waits for both workers, so a run in which one did a step more would never end.
    """
    given = tmp_path / "given.pickle"
    given.write_bytes(
        pickle.dumps((tiny_data.data, MODEL, TRAINING.model_copy(update={"num_workers": 2, "epochs": 2})))
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
    alone = trained.facts["steps"] / 3
    assert 0.35 * alone < made["steps"] / 2 < 0.65 * alone + 1
