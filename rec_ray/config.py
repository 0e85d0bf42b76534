"""Every setting of the program: typed, documented, frozen, and unknown keys refused.

`load_settings` reads the settings file of a project, lets the environment (`REC_RAY__SECTION__KEY`) and then the
command line (`section.key=value`) override it, and resolves relative paths against the file's folder. It is the only
module that reads the environment, and it opens nothing but the settings file and mounted secret files.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from rec_ray.errors import ConfigError, listed
from rec_ray.schema import FeatureDeclaration

ENV_PREFIX = "REC_RAY__"
SETTINGS_FILE = "rec_ray.yaml"
SECRETS = {("storage", "access_key"), ("storage", "secret_key"), ("database", "password")}

_SQLITE = re.compile(r"^sqlite(\+\w+)?:(///?)?")
_PASSWORD_IN_URL = re.compile(r"://[^@]*:[^@]*@|[?&]\w*(password|passwd|pwd)=", re.IGNORECASE)

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
# YAML reads an unquoted off as false.
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
        if _SQLITE.match(url):
            if ":memory:" in url or "mode=memory" in url or not _SQLITE.sub("", url).partition("?")[0]:
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
    time_gaps: bool = Field(False, description="Read the time between events; off where timestamps are coarse.")
    similarity: Literal["cosine", "dot"] = Field("cosine", description="How a user and an item are compared.")


class TrainSettings(Section):
    """How the towers learn."""

    epochs: Positive = Field(12, description="Passes over the training events at most.")
    patience: Positive = Field(5, description="Epochs without a better validation NDCG@10 before stopping.")
    batch_size: Positive = Field(512, description="Events in a batch of one worker.")
    learning_rate: float = Field(3e-3, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of the dense weights.")
    warmup: Fraction = Field(0.05, description="Share of the steps in which the learning rate rises.")
    temperature: float = Field(0.07, gt=0, description="Divides similarities before the softmax.")
    loss: Literal["softmax", "bpr"] = Field("softmax", description="Softmax over many negatives, or pairwise.")
    in_batch_negatives: bool = Field(True, description="Other positives of the batch are negatives.")
    uniform_negatives: int = Field(2048, ge=0, description="Items drawn uniformly as negatives, the same for a batch.")
    log_q: bool = Field(True, description="Correct the softmax for how often an item is drawn as a negative.")
    label_smoothing: Fraction = Field(0.0, description="Share of a target's mass that is spread over all items.")
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
    gate: Gate = Field("warn", description="What happens when the model is worse than popularity: warn, refuse, off.")
    gate_margin: Fraction = Field(0.0, description="Share by which NDCG@10 may be worse before the gate acts.")


class CandidateSettings(Section):
    """The lists of recommendations."""

    k: Positive = Field(100, description="Items in the list of a user.")
    exclude_seen: bool = Field(True, description="Leave out items that the user already interacted with.")
    batch_size: Positive = Field(1024, description="Users scored at a time by one actor.")


class PublishSettings(Section):
    """How candidates reach the Feast online store."""

    item_push_source: str = Field("item_embed_push_source", description="Push source of item vectors.")
    user_push_source: str = Field("user_embed_push_source", description="Push source of user vectors.")
    recommendation_push_source: str = Field("user_items_push_source", description="Push source of the lists.")
    batch_rows: Positive = Field(1000, description="Rows of one push.")
    lock_seconds: Positive = Field(900, description="A publisher that is silent for so long has lost its lock.")


class Settings(Section):
    """All settings of a project."""

    feast: FeastSettings = Field(default_factory=FeastSettings)
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


def load_settings(path: str | Path, overrides: Sequence[str] = (), environ: Mapping[str, str] = os.environ) -> Settings:
    """Read a settings file; environment variables override it, and `overrides` override those.

    Args:
        path: the settings file; relative paths in it are relative to its folder.
        overrides: `section.key=value`, the value written as in YAML.
        environ: read for `REC_RAY__SECTION__KEY`, for secrets also `REC_RAY__SECTION__KEY_FILE`, and for RAY_ADDRESS.
            Features and event types in a variable's name are those of the file in any case, new ones in small letters.

    Raises:
        ConfigError: the file is missing or no YAML, or a key or a value is wrong; all faults are named at once.
    """
    file = Path(path)
    values = _read_yaml(file)
    for section, key in SECRETS:
        if isinstance(values.get(section), dict) and values[section].get(key) is not None:
            name = f"{ENV_PREFIX}{section}__{key}".upper()
            raise ConfigError(f"{file} holds {section}.{key}; set {name} or {name}_FILE instead, never in a file")
    for keys, value in _from_environment(environ):
        _put(values, keys, value, origin="environment")
    for override in overrides:
        name, equals, text = override.partition("=")
        keys = name.split(".")
        if not equals or len(keys) < 2:
            # Never the value: it may be a secret that lacks its section.
            raise ConfigError(f"--set takes section.key=value; got {name + '=...' if equals else name!r}")
        if (keys[0], keys[-1]) in SECRETS:
            raise ConfigError(f"{name} is a secret: set it in the environment, not on the command line")
        _put(values, keys, _parse(text, f"--set {name}"), origin="--set")
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        faults = "\n".join(f"  {_fault(fault)}" for fault in error.errors(include_url=False, include_input=True))
        raise ConfigError(f"{file}: {error.error_count()} wrong setting(s)\n{faults}") from None
    # Not the folder behind a link: a mounted ConfigMap links its files into a folder that changes with each update.
    settings = _absolute(settings, file.absolute().parent)
    address = environ.get("RAY_ADDRESS", "").strip()
    if settings.ray.address is None and address and not address.startswith(("http://", "https://")):
        settings = settings.model_copy(update={"ray": settings.ray.model_copy(update={"address": address})})
    return settings


def _read_yaml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError(
            f"no settings file at {file}; make a project with `rec-ray init DIR` or name one with --config"
        )
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        # Without the line itself, which may hold a secret.
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{file} is not YAML: {error.problem}{line}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{file} cannot be read as YAML: {error}") from None
    if not isinstance(values, dict | None):
        found = type(values).__name__
        raise ConfigError(f"{file} holds a {found}; expected the sections {listed(Settings.model_fields)}")
    return values or {}


def _from_environment(environ: Mapping[str, str]) -> list[tuple[list[str], Any]]:
    found: list[tuple[list[str], Any]] = []
    for name in sorted(environ):
        if not name.upper().startswith(ENV_PREFIX):
            continue
        keys = name[len(ENV_PREFIX) :].lower().split("__")
        value: Any = environ[name]
        if keys[-1].endswith("_file") and (keys[0], keys[-1].removesuffix("_file")) in SECRETS:
            keys = [*keys[:-1], keys[-1].removesuffix("_file")]
            try:
                value = Path(value).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                # Without the value: who mistakes the variable puts the secret itself there.
                reason = getattr(error, "strerror", None) or "it is no text"
                raise ConfigError(f"the file that {name} names cannot be read: {reason}") from None
        elif (keys[0], keys[-1]) not in SECRETS:
            value = _parse(value, name)
        elif not value:
            continue
        found.append((keys, value))
    return found


def _parse(text: str, name: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"the value of {name} is not YAML; put a text with special characters in quotes") from None


def _put(values: dict[str, Any], keys: list[str], value: Any, *, origin: str) -> None:
    place: Any = values
    for depth, key in enumerate(keys):
        if not isinstance(place, dict):
            raise ConfigError(f"{origin}: {'.'.join(keys)} goes below {keys[depth - 1]!r}, which is no section")
        if origin == "environment":
            key = next((name for name in place if str(name).lower() == key), key)
        if depth == len(keys) - 1:
            place[key] = value
        elif place.get(key) is None:
            place[key] = {}
        place = place[key]


def _fault(fault: Any) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where}: no such setting{_known(fault['loc'])}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not where:
        return message
    # A whole section, or an address, may hold a secret where it should not be.
    hidden = {*SECRETS, ("database", "url"), ("storage", "endpoint")}
    if len(fault["loc"]) < 2 or fault["loc"][:2] in hidden or isinstance(fault["input"], dict | list):
        return f"{where}: {message}"
    return f"{where}: {message}; got {fault['input']!r}"


def _known(loc: tuple[str | int, ...]) -> str:
    """Return the nearest known names beside a misspelt one."""
    place: Any = Settings
    for key in loc[:-1]:
        is_section = isinstance(place, type) and issubclass(place, Section)
        # Else it is a dictionary of them.
        place = place.model_fields[str(key)].annotation if is_section else get_args(place)[-1]
    names = list(place.model_fields) if issubclass(place, Section) else [field.name for field in fields(place)]
    near = difflib.get_close_matches(str(loc[-1]), names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {listed(names, limit=20)}"


def _absolute(settings: Settings, folder: Path) -> Settings:
    """Resolve the relative paths of the settings against the folder of their file."""

    def path(text: str) -> str:
        return text if "://" in text else str((folder / text).resolve())

    url = settings.database.url
    if sqlite := _SQLITE.match(url):
        url = sqlite[0] + path(url.removeprefix(sqlite[0]))
    ca_bundle = settings.storage.ca_bundle
    return settings.model_copy(
        update={
            "feast": settings.feast.model_copy(update={"repo": path(settings.feast.repo)}),
            "storage": settings.storage.model_copy(
                update={"url": path(settings.storage.url), "ca_bundle": ca_bundle and path(ca_bundle)}
            ),
            "database": settings.database.model_copy(update={"url": url}),
        }
    )


def redacted(settings: Settings) -> dict[str, Any]:
    """Return the settings as plain values with every secret masked, for logs and stored records."""
    return settings.model_dump(mode="json")
