"""Frozen objects that the steps pass on, in the order of the steps.

Each is produced by one step and read by later ones, and holds data with hardly any logic. The module imports nothing
heavier than Arrow at run time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rec_ray.schema import SplitTimes

if TYPE_CHECKING:
    import ray
    import ray.data

    from rec_ray.retrieval.features.preprocessing import Preprocessor
    from rec_ray.retrieval.model.bundle import TwoTowerBundle

MODEL, REFITTED, LIVE = "model", "model_refitted", "live"
POPULARITY, RECENT, KNN, TRANSITIONS = "popularity", "recent_popularity", "item_knn", "item_transitions"
RANDOM_WALK = "random_walk"
"""Methods of an evaluation: the model, itself refitted with the validation events, the live version, the baselines."""


@dataclass(frozen=True)
class RowCounts:
    """Interactions by outcome; `read` is the sum of the other fields."""

    read: int
    kept: int
    null_keys: int = 0
    null_timestamps: int = 0
    in_the_future: int = 0
    of_excluded_users: int = 0


@dataclass(frozen=True)
class FeatureTables:
    """Feature tables from Feast, joined point in time, as Ray Datasets.

    interactions: `schema.INTERACTIONS` plus the user features as of each row. All rows of a user are in one block, in
        the order of time; every user also has one query row (null `item_id`) for each time in `split_times`.
    items: `item_id`, `as_of`, `first_seen` and the item features, one row per item for each of `test_start` and
        `as_of`.
    raw_items, raw_users: columns of both that later steps need unencoded, such as those that filters read.
    notes: warnings about the times of the rows. sources: view -> second of its newest row, if that is known.
    """

    interactions: ray.data.Dataset
    items: ray.data.Dataset
    split_times: SplitTimes
    rows: RowCounts
    raw_items: pa.Schema = field(default_factory=lambda: pa.schema([]))
    raw_users: pa.Schema = field(default_factory=lambda: pa.schema([]))
    notes: tuple[str, ...] = ()
    sources: dict[str, int] = field(default_factory=dict)

    def map_rows(self, change: Callable[[pa.Table], pa.Table]) -> FeatureTables:
        """Return the tables with a change of each block of interactions and of items."""
        return replace(
            self,
            interactions=self.interactions.map_batches(change, batch_size=None, batch_format="pyarrow"),
            items=self.items.map_batches(change, batch_size=None, batch_format="pyarrow"),
        )


@dataclass(frozen=True)
class ActiveUsers:
    """Users with an event since a given time.

    ids: reference to an Arrow array of distinct ids. count: number of ids. rows: outcome of all rows read.
    """

    ids: ray.ObjectRef
    count: int
    rows: RowCounts


@dataclass(frozen=True)
class TrainingData:
    """Encoded timelines and catalogues, stored as Parquet under the prefix of the run.

    timelines: folder, one row per user (`retrieval.timelines.TIMELINES`).
    catalogue: folder, one row per item (`retrieval.catalogue.CATALOGUE`), with features as of the test cut-off.
    catalogue_now: likewise, with features as of now.
    All three also have the raw columns of the feature tables, see `schema.RAW_ITEM`.
    positives: number of training positives. rows: outcome of all interactions read. read_timelines: folder of
    `schema.USER_TIMELINES`, the summaries of the timelines as they were read; empty in data of an earlier program.
    notes: findings about the data, as sentences, for the log and the report.
    profile: key of the `DataProfile` of the data; empty if they were encoded for a stored model.
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
    notes: tuple[str, ...] = ()
    profile: str = ""
    read_timelines: str = ""


@dataclass(frozen=True)
class EpochResult:
    """One epoch of training: mean loss, validation NDCG@10 and speed.

    averaged: True if the NDCG belongs to the running average of the weights, because the average was better.
    chance: mean loss of scores by popularity on the same batches, 0 if unknown. effective_rank, mean_cosine: of the
    item vectors; a rank near 1 and a cosine near 1 are those of a model that collapsed.
    """

    epoch: int
    loss: float
    validation_ndcg: float
    seconds: float
    examples_per_second: float
    averaged: bool = False
    chance: float = 0.0
    effective_rank: float = 0.0
    mean_cosine: float = 0.0


@dataclass(frozen=True)
class TrainingFacts:
    """Course of a training.

    steps: of the optimizer, refits included. seconds_to_first_step: from its start. history: the encoder chosen, with
    the reason. attempts: settings and best epoch of each attempt. effective_rank, mean_cosine: of the item vectors of
    the best epoch. nothing_learned: a sentence if the chosen attempt collapsed.
    """

    steps: int = 0
    seconds_to_first_step: float | None = None
    history: str | None = None
    reason: str | None = None
    attempts: list[dict[str, Any]] = field(default_factory=list)
    effective_rank: float | None = None
    mean_cosine: float | None = None
    nothing_learned: str | None = None


@dataclass(frozen=True)
class Trial:
    """Trial of a search for settings, judged by its best epoch.

    settings: those that differ from the project's, by full name; empty for the project's own. stopped: ended early
    because others were better.
    """

    settings: dict[str, Any]
    validation_ndcg: float
    epochs: int
    seconds: float
    stopped: bool


@dataclass(frozen=True)
class TuningResult:
    """All trials of a search for settings, the best one first; one of them has the project's own settings."""

    trials: tuple[Trial, ...]

    @property
    def own(self) -> Trial | None:
        """The trial with the project's own settings; None if the time ended before its first epoch."""
        return next((trial for trial in self.trials if not trial.settings), None)


@dataclass(frozen=True)
class TrainedModel:
    """Best towers of a training with their fitted preprocessor.

    bundle: trained on the training events alone; the metrics describe it. checked: refitted with the validation events,
    or None. published: refitted with all events; `bundle` itself without a refit.
    """

    bundle: TwoTowerBundle
    epochs: tuple[EpochResult, ...]
    best_epoch: int
    published: TwoTowerBundle
    checked: TwoTowerBundle | None = None
    facts: TrainingFacts = field(default_factory=TrainingFacts)


@dataclass(frozen=True)
class LiveVersion:
    """Live version to compare with a new one: its bundle, and the same events encoded for it.

    without: features that it reads and the settings no longer declare; it takes them as unknown.
    """

    version: str
    bundle: TwoTowerBundle
    data: TrainingData
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Segment:
    """Metrics of every method on a part of the users, or on the targets of one kind of items.

    described: readable name of the segment. metrics, intervals: as in `Evaluation`, with fewer metrics.
    """

    described: str
    users: int
    metrics: dict[str, dict[str, float]]
    intervals: dict[str, dict[str, tuple[float, float]]]


@dataclass(frozen=True)
class Example:
    """One user of the evaluation, with item ids.

    history: latest positives before the test, newest last. recommended: the model's list, best first.
    taken: targets, that is held-out positives.
    """

    user_id: str
    segment: str
    history: tuple[str, ...]
    recommended: tuple[str, ...]
    scores: tuple[float, ...]
    taken: tuple[str, ...]


@dataclass(frozen=True)
class EvaluationFacts:
    """Counts of an evaluation, and the live version that it compares with.

    targets: held-out positives that were ranked. seen_targets, unknown_targets: held-out positives that were not,
    because
        the user had seen the item before, or because the item was not known before the test.
    known_items: items that were ranked. periods: split -> number of events, seconds since 1970 of the first and the
    last. lists: method -> figures of its lists, if filters or diversity change the lists. live_version: None if not
    compared. live_without: as `LiveVersion.without`. history, reason, effective_rank, mean_cosine, nothing_learned: as
    in `TrainingFacts`.
    """

    targets: int = 0
    seen_targets: int = 0
    unknown_targets: int = 0
    known_items: int = 0
    periods: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    lists: dict[str, dict[str, float]] = field(default_factory=dict)
    live_version: str | None = None
    live_without: tuple[str, ...] = ()
    history: str | None = None
    reason: str | None = None
    effective_rank: float | None = None
    mean_cosine: float | None = None
    nothing_learned: str | None = None


@dataclass(frozen=True)
class Distributions:
    """Data of plots.

    scores: of `recommended`, `taken` and `random` items. learned, recommended: points [rank, count] of the frequency of
    items in the training events and in the model's lists, most frequent first.
    """

    scores: dict[str, list[float]] = field(default_factory=dict)
    learned: list[list[int]] = field(default_factory=list)
    recommended: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Evaluation:
    """Full-ranking metrics of the model, the live version and the baselines on the same users.

    metrics: method name (`model`, `popularity`, ...) -> metric name (`recall@10`, ...) -> mean over users.
    intervals: likewise, the 95 % bootstrap interval over users.
    differences: method -> metric -> the 95 % interval of the model's mean minus that method's, over the same users.
    segments: name -> metrics of a part of the users or items.
    examples: a few users of different activity, chosen by a hash of their ids.
    """

    metrics: dict[str, dict[str, float]]
    users: int
    targets: int
    intervals: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    facts: EvaluationFacts = field(default_factory=EvaluationFacts)
    differences: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    segments: dict[str, Segment] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    distributions: Distributions = field(default_factory=Distributions)


@dataclass(frozen=True)
class StoredModel:
    """Bundle in the object store, complete and verified."""

    version: str
    uri: str
    sha256: str


@dataclass(frozen=True)
class Candidates:
    """Embeddings and recommendations of one version, as Parquet in the object store.

    folder: contains `item_embeddings/`, `user_embeddings/`, `recommendations/` and `manifest.json`, written last.
    """

    version: str
    folder: str
    items: int
    users: int
    k: int
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchVectors:
    """Vectors of item texts and images, as Parquet beside the candidates of a version and listed in their manifest.

    rows: push source -> items with a vector. encoded, kept: texts and images encoded in this run, and those whose
    vectors came from the cache. unreadable: image addresses without a readable image.
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
    pruned: versions whose files were removed, as `publish.keep_versions` asks.
    withdrawn: items that Feast knows no more and that were left out.
    online: materialised view -> published ids that were looked up in it, and how many of them have a row.
    """

    version: str
    rows: dict[str, int]
    departed: dict[str, int] = field(default_factory=dict)
    pruned: int = 0
    withdrawn: int = 0
    online: dict[str, tuple[int, int]] = field(default_factory=dict)
