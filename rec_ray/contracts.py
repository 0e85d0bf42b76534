"""The frozen objects that the steps hand each other, in the order of the line.

Each is made by one step and read by later ones; none has logic beyond naming its parts. The module knows the shape of
the hand-overs and imports nothing heavy at run time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ray.data

    from rec_ray.retrieval.bundle import TwoTowerBundle
    from rec_ray.retrieval.preprocessing import Preprocessor

TRAIN, VALIDATION, TEST = 0, 1, 2
"""Labels of an event: learned from; watched for early stopping; held out for the metrics."""


@dataclass(frozen=True)
class SplitTimes:
    """The instants that divide the events; all are UTC.

    With the split `leave_one_out` both starts equal `as_of`: the events themselves are divided, not the time.
    """

    validation_start: datetime
    test_start: datetime
    as_of: datetime


@dataclass(frozen=True)
class RowCounts:
    """What became of the rows of the interactions; `read` is the sum of the others."""

    read: int
    kept: int
    null_keys: int = 0
    null_timestamps: int = 0
    in_the_future: int = 0


@dataclass(frozen=True)
class FeatureTables:
    """What Feast holds, point in time, as Ray Datasets.

    interactions: `schema.INTERACTIONS` plus the user features as of each row. All rows of a user lie in one block,
        in the order of time; every user also has one query row (null `item_id`) for each instant of `split_times`.
    items: `item_id`, `as_of`, `first_seen` and the item features, one row an item for each of `test_start` and `as_of`.
    """

    interactions: ray.data.Dataset
    items: ray.data.Dataset
    split_times: SplitTimes
    rows: RowCounts


@dataclass(frozen=True)
class TrainingData:
    """Encoded timelines and catalogue, stored as Parquet under the prefix of the run.

    timelines: folder, one row a user (`retrieval.timelines.TIMELINES`).
    catalogue: folder, one row an item (`retrieval.catalogue.CATALOGUE`), with features as of the test cut-off.
    catalogue_now: the same as of now.
    positives: events to learn from. rows: what became of the rows of the interactions.
    """

    timelines: str
    catalogue: str
    catalogue_now: str
    preprocessor: Preprocessor
    users: int
    items: int
    events: int
    positives: int
    split_times: SplitTimes
    rows: RowCounts
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EpochResult:
    """One epoch of training: mean loss, validation NDCG@10 and its speed."""

    epoch: int
    loss: float
    validation_ndcg: float
    seconds: float
    examples_per_second: float


@dataclass(frozen=True)
class TrainedModel:
    """The best towers of a training, with what was fitted before them."""

    bundle: TwoTowerBundle
    epochs: tuple[EpochResult, ...]
    best_epoch: int
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """Full-ranking metrics of the model and of the baselines on the same users.

    metrics: method name (`model`, `popularity`, ...) -> metric name (`recall@10`, ...) -> mean over users.
    intervals: likewise, the 95 % bootstrap interval over users.
    """

    metrics: dict[str, dict[str, float]]
    users: int
    targets: int
    intervals: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredModel:
    """A bundle in the object store, complete and verified."""

    version: str
    uri: str
    sha256: str


@dataclass(frozen=True)
class Candidates:
    """Embeddings and recommendations of one version, as Parquet in the object store.

    folder: holds `item_embeddings/`, `user_embeddings/`, `recommendations/` and `manifest.json`, written last.
    """

    version: str
    folder: str
    items: int
    users: int
    k: int
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class UpdateReport:
    """Rows that reached the feature store, by push source.

    departed: empty rows for those that the version before had and this one has not.
    """

    version: str
    rows: dict[str, int]
    departed: dict[str, int] = field(default_factory=dict)
