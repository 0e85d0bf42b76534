"""Hand-overs through files and back: equal to what went in, and nothing but JSON and safetensors."""

import dataclasses
from datetime import UTC, datetime

import pytest
import torch

from rec_ray.contracts import (
    Candidates,
    EpochResult,
    Evaluation,
    EvaluationFacts,
    RowCounts,
    StoredModel,
    TrainedModel,
    TrainingData,
    TrainingFacts,
    UpdateReport,
)
from rec_ray.errors import DataError
from rec_ray.retrieval.features.preprocessing import FeaturePreprocessor, Preprocessor
from rec_ray.retrieval.model.bundle import TwoTowerBundle
from rec_ray.retrieval.model.towers import build_two_tower
from rec_ray.runs.step_records import from_files, to_files
from rec_ray.schema import SplitTimes

FACTS = EvaluationFacts(4, 1, periods={"train": (9, 1, 2)}, lists={"model": {"fresh@10": 0.1 + 0.2}}, live_version="6")
NOON = datetime(2024, 1, 1, 12, 0, 0, 250, tzinfo=UTC)


@pytest.fixture
def preprocessor() -> Preprocessor:
    nothing = FeaturePreprocessor({}, {}, {}, 0)
    return Preprocessor(nothing, nothing, item_ids=("a", "b", "ü"), event_types=("buy",))


@pytest.mark.parametrize(
    "result",
    [
        Evaluation({"model": {"recall@10": 0.1 + 0.2}}, 3, 4, {"model": {"recall@10": (0.1, 1 / 3)}}, FACTS),
        StoredModel("7", "s3://bucket/two-tower/7", "0" * 64),
        Candidates("7", "two-tower/7/candidates", 10, 20, 5, {"short_lists": 0}),
        UpdateReport("7", {"items": 10}),
    ],
)
def test_plain_hand_overs_come_back_equal(result: object) -> None:
    assert from_files(type(result), to_files(result)) == result


def test_training_data_come_back_equal(preprocessor: Preprocessor) -> None:
    data = TrainingData(
        "/t",
        "/c",
        "/n",
        preprocessor,
        1,
        2,
        3,
        4,
        SplitTimes(NOON, NOON, NOON),
        RowCounts(9, 8, 1),
        {"users": 1},
        notes=("one user has most of the events",),
    )
    again = from_files(TrainingData, to_files(data))
    assert again.preprocessor.to_dict() == preprocessor.to_dict()
    assert dataclasses.replace(again, preprocessor=preprocessor) == data


@pytest.mark.parametrize("refit", [True, False])
def test_a_trained_model_has_the_same_weights_however_often_it_is_recorded(
    preprocessor: Preprocessor, refit: bool
) -> None:
    arguments = {
        "vocabulary_size": preprocessor.vocabulary_size,
        "item_shape": dataclasses.asdict(preprocessor.items.shape),
        "user_shape": dataclasses.asdict(preprocessor.users.shape),
        "event_types": 2,
        "embedding_size": 4,
        "history": "mean",
        "history_length": 3,
    }
    learned, checked, published = (
        TwoTowerBundle(build_two_tower(**arguments).eval(), arguments, preprocessor, {"run_id": "x"}) for _ in range(3)
    )
    published = dataclasses.replace(published, evaluated=learned.model)
    epochs = (EpochResult(1, 0.1 + 0.2, 0.25, 1.5, 100.0),)
    trained = TrainedModel(learned, epochs, 1, learned, facts=TrainingFacts(3, 1.5))
    if refit:
        trained = dataclasses.replace(trained, published=published, checked=checked)
    once = from_files(TrainedModel, to_files(trained))
    assert to_files(once) == to_files(from_files(TrainedModel, to_files(once))) == to_files(trained)
    assert (once.epochs, once.best_epoch, once.facts) == (epochs, 1, TrainingFacts(3, 1.5))
    pairs = [(once.bundle, learned)]
    assert (once.checked is not None) == refit
    if refit and once.checked is not None:
        pairs += [(once.published, published), (once.checked, checked)]
    for found, expected in pairs:
        for name, weights in expected.model.state_dict().items():
            assert torch.equal(weights, found.model.state_dict()[name])


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"version": "7"}', b'{"version": "7", "uri": 1, "sha256": []}', b"\x80"]
)
def test_a_damaged_record_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(DataError, match="no StoredModel"):
        from_files(StoredModel, {"record.json": data})
