"""Every setting of the program: typed, documented, frozen, and unknown keys refused.

`load_settings` reads the settings file of a project, lets the environment (`REC_RAY__SECTION__KEY`) and then the
command line (`section.key=value`) override it, and resolves relative paths against the file's folder. It is the only module
that reads the environment, and it opens nothing but the settings file and mounted secret files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from rec_ray.errors import ConfigError, listed
from rec_ray.schema import FeatureDeclaration

ENV_PREFIX = "REC_RAY__"
SETTINGS_FILE = "rec_ray.yaml"
SECRETS = {("storage", "access_key"), ("storage", "secret_key"), ("database", "password")}

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of all sections: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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


class RaySettings(Section):
    """The cluster to run on."""

    address: str | None = Field(None, description="Cluster to join; without it a local Ray is started and stopped.")
    num_cpus: Positive | None = Field(None, description="Logical CPUs of a local Ray; default: the cores there are.")
    object_store_memory: Positive | None = Field(None, description="Bytes of a local object store; default: Ray's.")
    threads: Positive | None = Field(None, description="Compute threads of one process; default: its share of cores.")


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
    dropout: Fraction = Field(0.3, description="Dropout in both towers.")
    id_dropout: Fraction = Field(0.1, description="Share of item ids hidden in training, so that features carry.")
    time_gaps: bool = Field(False, description="Read the time between events; off where timestamps are coarse.")
    similarity: Literal["cosine", "dot"] = Field("cosine", description="How a user and an item are compared.")


class TrainSettings(Section):
    """How the towers learn."""

    epochs: Positive = Field(20, description="Passes over the training events at most.")
    patience: Positive = Field(5, description="Epochs without a better validation NDCG@10 before stopping.")
    batch_size: Positive = Field(256, description="Timelines in a batch of one worker.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of the dense weights.")
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
    seed: int = Field(0, description="Repeats a run on one worker.")
    num_workers: Positive = Field(1, description="Training processes.")
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
    gate: Literal["warn", "refuse", "off"] = Field(
        "warn", description="What happens when the model is worse than popularity."
    )
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
        return self


def load_settings(path: str | Path, overrides: Sequence[str] = (), environ: Mapping[str, str] = os.environ) -> Settings:
    """Read a settings file; environment variables override it, and `overrides` override those.

    Args:
        path: the settings file; relative paths in it are relative to its folder.
        overrides: `section.key=value`, the value written as in YAML.
        environ: read for `REC_RAY__SECTION__KEY` and, for secrets, `REC_RAY__SECTION__KEY_FILE`.

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
            raise ConfigError(f"--set takes section.key=value; got {override!r}")
        if (keys[0], keys[-1]) in SECRETS:
            raise ConfigError(f"{name} is a secret: set it in the environment, not on the command line")
        _put(values, keys, _parse(text, name), origin="--set")
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        faults = "\n".join(f"  {_fault(fault)}" for fault in error.errors(include_url=False, include_input=True))
        raise ConfigError(f"{file}: {error.error_count()} wrong setting(s)\n{faults}") from None
    return _absolute(settings, file.resolve().parent)


def _read_yaml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ConfigError(
            f"no settings file at {file}; make a project with `rec-ray init DIR` or name one with --config"
        )
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{file} holds a {type(values).__name__}; expected the sections {listed(Settings.model_fields)}"
        )
    return {name: section for name, section in values.items() if section is not None}


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
            except OSError as error:
                raise ConfigError(f"{name} names {value}, which cannot be read: {error.strerror}") from None
        elif (keys[0], keys[-1]) not in SECRETS:
            value = _parse(value, name)
        found.append((keys, value))
    return found


def _parse(text: str, name: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"{name}: {text!r} is not a YAML value") from None


def _put(values: dict[str, Any], keys: list[str], value: Any, *, origin: str) -> None:
    place = values
    for key in keys[:-1]:
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            raise ConfigError(f"{origin}: {'.'.join(keys)} goes below {key!r}, which is no section")
    place[keys[-1]] = value


def _fault(fault: Any) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{where}: no such setting{_known(fault['loc'])}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not where:
        return message
    secret = len(fault["loc"]) >= 2 and (fault["loc"][0], fault["loc"][1]) in SECRETS
    return f"{where}: {message}" + ("" if secret else f"; got {fault['input']!r}")


def _known(loc: tuple[str | int, ...]) -> str:
    """Return the nearest known names beside a misspelt one."""
    import difflib

    place: Any = Settings
    for key in loc[:-1]:
        field = place.model_fields.get(str(key)) if isinstance(place, type) and issubclass(place, Section) else None
        if field is None:
            return ""
        place = field.annotation
    if not (isinstance(place, type) and issubclass(place, Section)):
        return ""
    near = difflib.get_close_matches(str(loc[-1]), list(place.model_fields), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {listed(place.model_fields, limit=20)}"


def _absolute(settings: Settings, folder: Path) -> Settings:
    """Resolve the relative paths of the settings against the folder of their file."""

    def path(text: str) -> str:
        return text if "://" in text else str((folder / text).resolve())

    url = settings.database.url
    if url.startswith("sqlite:///") and url != "sqlite:///:memory:":
        url = "sqlite:///" + path(url.removeprefix("sqlite:///"))
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


def render_settings(values: Mapping[str, Any] | None = None, notes: Mapping[str, str] | None = None) -> str:
    """Return a settings file with every setting, its default or given value, and a comment on each.

    Args:
        values: nested values that differ from the defaults.
        notes: further comments by `section.key`, set above the setting.
    """
    settings = Settings.model_validate(values or {})
    dumped = settings.model_dump(mode="json")
    lines = [
        "# Settings of this rec_ray project. Any of them can also be set by an environment variable",
        "# REC_RAY__SECTION__KEY or by --set section.key=value; relative paths are relative to this file.",
    ]
    for name, field in Settings.model_fields.items():
        section = cast(type[Section], field.annotation)
        lines += ["", f"# {section.__doc__}", f"{name}:"]
        lines += _render(section, dumped[name], 1, name, notes or {})
    return "\n".join(lines) + "\n"


def _render(
    section: type[Section], values: Mapping[str, Any], depth: int, path: str, notes: Mapping[str, str]
) -> list[str]:
    lines = []
    indent = "  " * depth
    for key, field in section.model_fields.items():
        full = f"{path}.{key}"
        lines += [f"{indent}# {line}" for line in (notes[full].splitlines() if full in notes else [])]
        lines.append(f"{indent}# {field.description}")
        value = values[key]
        if (path, key) in SECRETS:
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            lines += [f"{indent}{key}:", *_render(field.annotation, value, depth + 1, full, notes)]
        elif isinstance(value, dict) and value:
            lines.append(f"{indent}{key}:")
            lines += [f"{indent}  {_flow(name)}: {_flow(_without_nulls(entry))}" for name, entry in value.items()]
        else:
            lines.append(f"{indent}{key}: {_flow(value)}")
    return lines


def _without_nulls(value: Any) -> Any:
    return {key: entry for key, entry in value.items() if entry is not None} if isinstance(value, dict) else value


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.strip().removesuffix("...").strip()


def redacted(settings: Settings) -> dict[str, Any]:
    """Return the settings as plain values with every secret masked, for logs and stored records."""
    return settings.model_dump(mode="json")
