"""Every setting of the program: typed, documented, frozen, and unknown keys refused.

Plain values go in and a `Settings` with one section for each part of the program comes out, or a validation error that
names what is wrong. It reads no file and no environment (`config_file` does) and opens nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from rec_ray.schema import FeatureDeclaration

ENV_PREFIX = "REC_RAY__"
SECRETS = {
    ("storage", "access_key"),
    ("storage", "secret_key"),
    ("database", "password"),
    ("side_tables", "password"),
}

PLACES = ("storage", "database", "ray", "publish")
"""Sections that say where a run works and what it tells, not what it learns."""
SQLITE_ADDRESS = re.compile(r"^sqlite(\+\w+)?:(///?)?")
_PASSWORD_IN_URL = re.compile(r"://[^@]*:[^@]*@|[?&]\w*(password|passwd|pwd)=", re.IGNORECASE)

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
# YAML reads an unquoted off as false.
Refit = Annotated[Literal["continue", "full", "off"], BeforeValidator(lambda refit: "off" if refit is False else refit)]
WarmStart = Annotated[Literal["live", "off"], BeforeValidator(lambda start: "off" if start is False else start)]
Gate = Annotated[Literal["warn", "refuse", "off"], BeforeValidator(lambda gate: "off" if gate is False else gate)]


class Section(BaseModel):
    """Base of all sections: frozen, a misspelt key is an error, and an empty section or list has its default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, values: Any) -> Any:
        """Leave out what a file holds no value for, such as a section whose lines are all commented out."""
        if not isinstance(values, dict):
            return values
        empty = {name for name, field in cls.model_fields.items() if field.default_factory and name in values}
        return {name: value for name, value in values.items() if value is not None or name not in empty}


class FeastSettings(Section):
    """Where the feature repository is and what it calls things."""

    repo: str = Field("feature_repo", description="Folder with feature_store.yaml.")
    user_service: str = Field("user_service", description="Feature service with the features of users.")
    item_service: str = Field("item_service", description="Feature service with the features of items.")
    interaction_service: str = Field("interaction_service", description="Feature service with the events.")
    user_key: str = Field("user_id", description="Join key of the entity user.")
    item_key: str = Field("item_id", description="Join key of the entity item.")
    join_rows: Positive = Field(250_000, description="Rows of one point-in-time join; bounds the memory of a worker.")


class SideTableSettings(Section):
    """SQL tables of the shop whose rows are added to what Feast holds: sign-ups and live clicks."""

    url: str | None = Field(None, description="SQLAlchemy address, without a password; null: no side tables.")
    password: SecretStr | None = Field(None, description="From REC_RAY__SIDE_TABLES__PASSWORD or ..._FILE only.")
    users: str | None = Field("users", description="Table of the users that signed up, or null.")
    user_columns: dict[str, str | None] = Field(
        default_factory=dict,
        description="Columns of it, by user_id, event_timestamp (signup_date) or field of a user; others as the field.",
    )
    interactions: str | None = Field("stream_interaction", description="Table of the clicks of today, or null.")
    interaction_columns: dict[str, str | None] = Field(
        default_factory=dict,
        description="Columns of it, by user_id, item_id, event_timestamp (timestamp), event_type, event_value.",
    )
    chunk_rows: Positive = Field(50_000, description="Rows that are read and held at a time.")

    @field_validator("url")
    @classmethod
    def _is_shown(cls, url: str | None) -> str | None:
        if url is not None and _PASSWORD_IN_URL.search(url):
            raise ValueError(
                f"holds a password; take it out and set {ENV_PREFIX}SIDE_TABLES__PASSWORD or ..._FILE instead"
            )
        return url


class StorageSettings(Section):
    """Where models and candidates are kept."""

    url: str = Field("store", description="A folder, or s3://bucket/prefix.")
    endpoint: str | None = Field(None, description="Address of MinIO or another S3, such as https://minio:9000.")
    region: str = Field("us-east-1", description="Region of the bucket.")
    ca_bundle: str | None = Field(None, description="File with the certificates to trust, for https endpoints.")
    access_key: SecretStr | None = Field(None, description="From REC_RAY__STORAGE__ACCESS_KEY or ..._FILE only.")
    secret_key: SecretStr | None = Field(None, description="From REC_RAY__STORAGE__SECRET_KEY or ..._FILE only.")


class DatabaseSettings(Section):
    """Where the versions are recorded."""

    url: str = Field("sqlite:///versions.db", description="SQLAlchemy address, without a password.")
    password: SecretStr | None = Field(None, description="From REC_RAY__DATABASE__PASSWORD or ..._FILE only.")

    @field_validator("url")
    @classmethod
    def _is_shown_and_outlives(cls, url: str) -> str:
        if SQLITE_ADDRESS.match(url):
            if ":memory:" in url or "mode=memory" in url or not SQLITE_ADDRESS.sub("", url).partition("?")[0]:
                raise ValueError(
                    "a database in memory is not enough: the lock of a publisher and the version row that other "
                    "processes read need a file, such as sqlite:///versions.db"
                )
        elif _PASSWORD_IN_URL.search(url):
            raise ValueError(
                f"holds a password; take it out and set {ENV_PREFIX}DATABASE__PASSWORD or ..._FILE instead"
            )
        return url


class RaySettings(Section):
    """The cluster to run on."""

    address: str | None = Field(
        None,
        description="Cluster to join; null: RAY_ADDRESS of the environment unless it begins with http (the job server "
        "of entrypoint.sh); without either a local Ray is started and stopped.",
    )
    num_cpus: Positive | None = Field(None, description="Logical CPUs of a local Ray; default: the cores there are.")
    object_store_memory: Positive | None = Field(None, description="Bytes of a local object store; default: Ray's.")
    threads: Positive | None = Field(None, description="Compute threads of a process; default: what it reserves.")


class InteractionSettings(Section):
    """What the events mean."""

    type_field: str | None = Field("interaction_type", description="Field with the type of an event, or null.")
    value_field: str | None = Field(None, description="Field with a rating, scales the weight of a positive; or null.")
    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict, description="Weight of a positive by type; a type not named weighs 1."
    )
    negative_types: list[str] = Field(default_factory=list, description="Types that are never positives.")


class FeatureSettings(Section):
    """Which features are used and how each is read; nothing is guessed from values."""

    user: dict[str, FeatureDeclaration] = Field(default_factory=dict, description="Features of users, by field name.")
    item: dict[str, FeatureDeclaration] = Field(default_factory=dict, description="Features of items, by field name.")
    interaction: InteractionSettings = Field(default_factory=InteractionSettings, description="What the events mean.")
    item_name: str | None = Field(None, description="Field of an item that people read, for recommend and reports.")
    text_encoder: str = Field(
        "hashing",
        pattern=r"^(hashing|transformers:\S.*)$",
        description="How texts of items are read: hashing (n-grams), or transformers:<name or path of a model>.",
    )
    text_buckets: Positive = Field(16_384, description="Hash buckets for the n-grams of all text fields.")
    max_vocabulary: Positive = Field(100_000, description="Most frequent values kept of one categorical field.")


class ModelSettings(Section):
    """The two towers."""

    embedding_size: Positive = Field(64, description="Dimensions of user and item vectors.")
    history: Literal["none", "mean", "transformer"] = Field("transformer", description="How past events are read.")
    history_length: Positive = Field(50, description="Events of a user that are read at most, the newest.")
    layers: Positive = Field(2, description="Layers of the history transformer.")
    heads: Positive = Field(2, description="Attention heads of a layer.")
    norm: Literal["pre", "post"] = Field("post", description="Where a transformer layer normalises.")
    dropout: Fraction = Field(0.2, description="Dropout in both towers.")
    id_dropout: Fraction = Field(0.1, description="Share of item ids hidden in training, so that features carry.")
    history_rows: bool = Field(
        True, description="Items have a second row for being read as history: what follows need not resemble."
    )
    time_gaps: bool = Field(False, description="Read the time between events; off where timestamps are coarse.")
    similarity: Literal["cosine", "dot"] = Field("cosine", description="How a user and an item are compared.")


class TrainSettings(Section):
    """How the towers learn."""

    epochs: Positive = Field(8, description="Passes over the training events at most.")
    patience: Positive = Field(3, description="Epochs without a better validation NDCG@10 before stopping.")
    batch_size: Positive = Field(512, description="Events in a batch of one worker.")
    learning_rate: float = Field(3e-3, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of the dense weights.")
    warmup: Fraction = Field(0.05, description="Share of the steps in which the learning rate rises.")
    temperature: float = Field(0.07, gt=0, description="Divides similarities before the softmax.")
    loss: Literal["softmax", "bpr"] = Field("softmax", description="Softmax over many negatives, or pairwise.")
    in_batch_negatives: bool = Field(True, description="Other positives of the batch are negatives.")
    uniform_negatives: int = Field(2048, ge=0, description="Items drawn uniformly as negatives, the same for a batch.")
    log_q: bool = Field(True, description="Correct the softmax for how often an item is drawn as a negative.")
    explicit_negatives: bool = Field(
        True, description="Events of declared negative types join the denominator of the positives of their user."
    )
    label_smoothing: Fraction = Field(0.0, description="Share of a target's mass that is spread over all items.")
    refit: Refit = Field(
        "continue",
        description="What is published has learned from the held-out events too: continue from the best epoch, full "
        "training anew, or off. Metrics are of the model before.",
    )
    refit_epochs: Positive = Field(3, description="Passes of refit: continue over all events.")
    refit_check: bool = Field(
        True, description="Also evaluate a model refitted with the validation events alone: what a refit is worth."
    )
    warm_start: WarmStart = Field("off", description="Begin with the weights of the live version, or with none.")
    precision: Literal["auto", "bf16", "float32"] = Field(
        "auto", description="Width of the products in training; auto: bf16 on a GPU."
    )
    cache_bytes: int = Field(
        2_000_000_000, ge=0, description="Timelines of one worker up to this size stay in memory; larger ones stream."
    )
    seed: int = Field(0, ge=0, description="Repeats a run on one worker.")
    num_workers: Positive = Field(1, description="Training processes.")
    cpus_per_worker: Positive = Field(1, description="CPUs, and compute threads, of a training process.")
    use_gpu: bool = Field(False, description="One GPU for each training process.")
    max_failures: int = Field(2, ge=0, description="Times a lost training worker is replaced.")


class EvaluationSettings(Section):
    """How a model is judged before it is published."""

    split: Literal["time", "leave_one_out"] = Field(
        "time", description="Held out: the end of time, or the last positive event of each user."
    )
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="Share of all events after the test cut-off (split: time)."
    )
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05, description="Share of all events between the validation and the test cut-off (split: time)."
    )
    validation_users: Positive = Field(
        10_000, description="Users on whom NDCG@10 is watched after each epoch; the metrics are always over all."
    )
    ks: list[Positive] = Field([5, 10, 20, 50, 100], description="Cut-offs of Recall@k and NDCG@k.", min_length=1)
    gate: Gate = Field(
        "warn", description="When the model is worse than popularity or the live version: warn, refuse to publish, off."
    )
    gate_margin: Fraction = Field(
        0.0, description="Share by which NDCG@10 may be below popularity's before the gate acts."
    )
    gate_live_margin: Fraction = Field(
        0.05, description="Share by which NDCG@10 may be below that of the live version before the gate acts."
    )


class UserRule(Section):
    """A rule between an item and a user: `item: age_limit, must_be: at_most, user: age`."""

    item: str = Field(description="Field of an item.")
    must_be: Literal["equal", "at_least", "at_most", "contains", "contained_in"] = Field(
        description="What the item's value must be beside the user's; an item without a value is for everyone."
    )
    user: str = Field(description="Field of a user.")
    unknown_user: Literal["refuse", "allow"] = Field(
        "refuse", description="Whether a user without a value gets the items that have one."
    )


class FilterSettings(Section):
    """What may be recommended to whom; acts before a list is cut to k. A missing value restricts nothing."""

    seen_types: list[str] = Field(default_factory=list, description="Types of events that count as seen; empty: all.")
    seen_days: float | None = Field(None, gt=0, description="Events count as seen for so many days; null: for ever.")
    available: str | None = Field(None, description="Boolean field of an item: one that is false is left out.")
    available_from: str | None = Field(None, description="Time field of an item: left out before it.")
    available_until: str | None = Field(None, description="Time field of an item: left out from it on.")
    category: str | None = Field(None, description="Field of an item that the next five are about.")
    separator: str | None = Field(None, description="Parts its paths; null: as the feature is declared.")
    allowed_categories: list[str] = Field(default_factory=list, description="Only these; a path means all below it.")
    blocked_categories: list[str] = Field(default_factory=list, description="None of these, nor what is below them.")
    most_per_category: Positive | None = Field(None, description="Items of one category in a list at most.")
    category_level: Positive | None = Field(
        None, description="Parts of a path that make the category of most_per_category; null: the whole path."
    )
    rules: list[UserRule] = Field(
        default_factory=list, description="Such as {item: age_limit, must_be: at_most, user: age}."
    )
    always_include: list[str] = Field(
        default_factory=list, description="Items in every list, unless seen, unavailable or against a rule."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> FilterSettings:
        about = ("separator", "allowed_categories", "blocked_categories", "most_per_category", "category_level")
        named = [name for name in about if getattr(self, name)]
        if named and self.category is None:
            raise ValueError(f"{named[0]} needs candidates.filters.category, the item field with the categories")
        if self.category_level is not None and self.most_per_category is None:
            raise ValueError("category_level says nothing without most_per_category")
        return self

    @property
    def item_fields(self) -> dict[str, str]:
        """The item fields that are read -> the setting that names each."""
        named = {name: getattr(self, name) for name in ("available", "available_from", "available_until", "category")}
        return {field: name for name, field in named.items() if field} | {rule.item: "rules" for rule in self.rules}

    @property
    def user_fields(self) -> dict[str, str]:
        """The user fields that are read -> the setting that names each."""
        return {rule.user: "rules" for rule in self.rules}


class CandidateSettings(Section):
    """The lists of recommendations."""

    k: Positive = Field(100, description="Items in the list of a user.")
    exclude_seen: bool = Field(True, description="Leave out items that the user already interacted with.")
    batch_size: Positive = Field(1024, description="Users scored at a time by one actor.")
    engine: Literal["exact", "faiss_ivf"] = Field(
        "exact", description="Exact search, or an inverted file of faiss for catalogues of millions (rec_ray[faiss])."
    )
    probes: Positive = Field(64, description="Lists of the inverted file that a user's search reads (faiss_ivf).")
    recall_floor: Fraction = Field(0.95, description="Share of the exact lists that faiss_ivf must find, or stop.")
    recall_users: Positive = Field(1000, description="Users on whom that share is measured in every run.")
    use_gpu: bool = Field(False, description="One GPU for each process that searches; users are embedded on CPUs.")
    shard_items: Positive | None = Field(
        None, description="Items that a process searches at a time; null: as many as a gigabyte of vectors holds."
    )
    filters: FilterSettings = Field(default_factory=FilterSettings, description="What may be recommended to whom.")
    diversity: Fraction = Field(
        0.0, description="Weight of unlikeness to the items before in a list (maximal marginal relevance); 0: off."
    )
    fresh_share: Fraction = Field(
        0.0, description="Least share of new items in the list, from its beginning on; 0: off."
    )
    fresh_days: float = Field(14, gt=0, description="An item is new for so many days after it was first seen.")
    segment: str | None = Field(
        None, description="User field: who has no event and no other feature gets what is popular with the same value."
    )
    similar_items: int = Field(0, ge=0, description="Items like it that are listed for each item; 0: none.")

    @model_validator(mode="after")
    def _fits_together(self) -> CandidateSettings:
        if not self.exclude_seen and (self.filters.seen_types or self.filters.seen_days):
            raise ValueError("filters.seen_types and filters.seen_days say nothing while exclude_seen is false")
        return self

    @property
    def item_fields(self) -> dict[str, str]:
        """The item fields that are read raw -> the setting that names each."""
        return {field: f"candidates.filters.{name}" for field, name in self.filters.item_fields.items()}

    @property
    def user_fields(self) -> dict[str, str]:
        """The user fields that are read raw -> the setting that names each."""
        named = {field: f"candidates.filters.{name}" for field, name in self.filters.user_fields.items()}
        return named | ({self.segment: "candidates.segment"} if self.segment else {})

    @property
    def changes_lists(self) -> bool:
        """Whether lists are other than the k best items that the user has not seen."""
        return bool(self.diversity or self.fresh_share or self.filters != FilterSettings())


class PublishSettings(Section):
    """How candidates reach the Feast online store."""

    item_push_source: str = Field("item_embed_push_source", description="Push source of item vectors.")
    user_push_source: str = Field("user_embed_push_source", description="Push source of user vectors.")
    recommendation_push_source: str = Field("user_items_push_source", description="Push source of the lists.")
    similar_push_source: str | None = Field(
        None, description="Push source of the lists of similar items, such as item_items_push_source; null: none."
    )
    batch_rows: Positive = Field(1000, description="Rows of one push.")
    push_mode: Literal["online", "online_and_offline"] = Field(
        "online", description="Where a push goes; online_and_offline also appends to the files or tables behind a view."
    )
    lock_seconds: Positive = Field(900, description="A publisher that is silent for so long has lost its lock.")
    wait_seconds: int = Field(
        0, ge=0, description="How long to wait while another run publishes, before leaving with exit code 7."
    )


class Settings(Section):
    """All settings of a project."""

    feast: FeastSettings = Field(default_factory=FeastSettings)
    side_tables: SideTableSettings = Field(default_factory=SideTableSettings)
    storage: StorageSettings = Field(default_factory=StorageSettings)
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    ray: RaySettings = Field(default_factory=RaySettings)
    features: FeatureSettings = Field(default_factory=FeatureSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    candidates: CandidateSettings = Field(default_factory=CandidateSettings)
    publish: PublishSettings = Field(default_factory=PublishSettings)

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        if self.evaluation.test_fraction + self.evaluation.validation_fraction >= 1:
            raise ValueError("evaluation.test_fraction and evaluation.validation_fraction leave nothing to train on")
        if self.model.history == "transformer" and self.model.embedding_size % self.model.heads:
            raise ValueError(
                f"model.embedding_size {self.model.embedding_size} is not a multiple of model.heads {self.model.heads}"
            )
        if not (self.train.in_batch_negatives or self.train.uniform_negatives):
            raise ValueError("train.uniform_negatives 0 without train.in_batch_negatives leaves no negatives")
        return self


def secrets_of(settings: Settings) -> list[str]:
    """Return the secrets that are set, for the one purpose of never showing them."""
    found = [getattr(getattr(settings, section), key) for section, key in sorted(SECRETS)]
    return [secret.get_secret_value() for secret in found if secret is not None]


def deciding_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings that decide what a run comes to, as plain values without secrets.

    Left out is where it runs and where things are kept: a run may go on elsewhere, with other workers.
    """
    plain = {name: value for name, value in redacted(settings).items() if name not in PLACES}
    for section, address in (("feast", "repo"), ("side_tables", "url")):
        plain[section] = {name: value for name, value in plain[section].items() if name != address}
    return plain


def hash_settings(deciding: dict[str, Any]) -> str:
    """Return the SHA-256 sum of `deciding_settings`."""
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def redacted(settings: Settings) -> dict[str, Any]:
    """Return the settings as plain values with every secret masked, for logs and stored records."""
    return settings.model_dump(mode="json")
