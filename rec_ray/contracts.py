"""The frozen objects that the steps hand each other, in the order of the line.

Each is made by one step and read by later ones; none has logic beyond naming its parts. The module knows the shape of
the hand-overs and imports nothing heavier than Arrow at run time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    import ray
    import ray.data

    from rec_ray.retrieval.features.preprocessing import Preprocessor
    from rec_ray.retrieval.model.bundle import TwoTowerBundle

TRAIN, VALIDATION, TEST = 0, 1, 2
"""Labels of an event: learned from; watched for early stopping; held out for the metrics."""


MODEL, REFITTED, LIVE = "model", "model_refitted", "live"
POPULARITY, RECENT, KNN, TRANSITIONS = "popularity", "recent_popularity", "item_knn", "item_transitions"
"""Methods of an evaluation: the model, the same refitted with the validation events, the version that is live, and what
only counts."""


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
    raw_items, raw_users: the columns of both that travel on as they are, because filters read them.
    """

    interactions: ray.data.Dataset
    items: ray.data.Dataset
    split_times: SplitTimes
    rows: RowCounts
    raw_items: pa.Schema = field(default_factory=lambda: pa.schema([]))
    raw_users: pa.Schema = field(default_factory=lambda: pa.schema([]))


@dataclass(frozen=True)
class ActiveUsers:
    """The users with an event since some time.

    ids: reference to an Arrow array of their ids, each once. count: of them. rows: what became of all rows read.
    """

    ids: ray.ObjectRef
    count: int
    rows: RowCounts


@dataclass(frozen=True)
class TrainingData:
    """Encoded timelines and catalogue, stored as Parquet under the prefix of the run.

    timelines: folder, one row a user (`retrieval.timelines.TIMELINES`).
    catalogue: folder, one row an item (`retrieval.catalogue.CATALOGUE`), with features as of the test cut-off.
    catalogue_now: the same as of now.
    Both and the timelines also hold the raw columns of the tables they were made from, see `schema.RAW_ITEM`.
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
    """One epoch of training: mean loss, validation NDCG@10 and its speed.

    averaged: whether that NDCG is of the running average of the weights, which did better than the weights themselves.
    """

    epoch: int
    loss: float
    validation_ndcg: float
    seconds: float
    examples_per_second: float
    averaged: bool = False


@dataclass(frozen=True)
class TrainedModel:
    """The best towers of a training, with what was fitted before them.

    bundle: learned from the training events alone; the metrics are of it. checked: the same refitted with the
    validation events, or None. published: the same refitted with all events; `bundle` itself without a refit.
    """

    bundle: TwoTowerBundle
    epochs: tuple[EpochResult, ...]
    best_epoch: int
    published: TwoTowerBundle
    checked: TwoTowerBundle | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LiveVersion:
    """The version that is live, to be judged beside a new one: its bundle, and the same events encoded for it."""

    version: str
    bundle: TwoTowerBundle
    data: TrainingData


@dataclass(frozen=True)
class Segment:
    """Metrics of every method on a part of the users, or on the targets that are of a kind of items.

    described: what a person calls the segment. metrics, intervals: as in `Evaluation`, of fewer metrics.
    """

    described: str
    users: int
    metrics: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, tuple[float, float]]]


@dataclass(frozen=True)
class Example:
    """One user of the evaluation, with ids of items.

    history: the newest positives before the test, the newest last. recommended: the model's list, best first.
    taken: the held-out positives that the model was asked for.
    """

    user_id: str
    segment: str
    history: tuple[str, ...]
    recommended: tuple[str, ...]
    scores: tuple[float, ...]
    taken: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """Full-ranking metrics of the model, of the live version and of the baselines on the same users.

    metrics: method name (`model`, `popularity`, ...) -> metric name (`recall@10`, ...) -> mean over users.
    intervals: likewise, the 95 % bootstrap interval over users.
    differences: method -> metric -> the 95 % interval of the model's mean minus that method's, over the same users.
    segments: name -> metrics of a part of the users or items.
    examples: a few users of different activity, chosen by a hash of their ids.
    distributions: numbers to draw: `scores` of `recommended`, `taken` and `random` items; `learned` and `recommended`,
        how often each item, the most frequent first, is in the events to learn from and in the model's lists.
    """

    metrics: dict[str, dict[str, float]]
    users: int
    targets: int
    intervals: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    differences: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    segments: dict[str, Segment] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    distributions: dict[str, Any] = field(default_factory=dict)


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
class SearchVectors:
    """Vectors of what items say and show, as Parquet beside the candidates of a version and listed in their manifest.

    rows: push source -> items that have a vector. encoded, kept: texts and images that were encoded now, and those
    whose vectors were there. unreadable: addresses of images that gave none.
    """

    version: str
    rows: dict[str, int] = field(default_factory=dict)
    encoded: int = 0
    kept: int = 0
    unreadable: int = 0


@dataclass(frozen=True)
class UpdateReport:
    """Rows that reached the feature store, by push source.

    departed: empty rows for those that the version before had and this one has not.
    """

    version: str
    rows: dict[str, int]
    departed: dict[str, int] = field(default_factory=dict)
