"""Settings of what is learned and how it is judged: features, events, the towers, training, evaluation.

Plain values go in and frozen sections come out. They know neither where data lie nor what becomes of a model.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from rec_ray.config.section import Fraction, Positive, Section
from rec_ray.schema import FeatureDeclaration

# YAML reads an unquoted off as false.
Refit = Annotated[Literal["continue", "full", "off"], BeforeValidator(lambda refit: "off" if refit is False else refit)]
WarmStart = Annotated[Literal["live", "off"], BeforeValidator(lambda start: "off" if start is False else start)]
Gate = Annotated[Literal["warn", "refuse", "off"], BeforeValidator(lambda gate: "off" if gate is False else gate)]


def _said_once(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Refuse with one message what is neither of two kinds; pydantic has one for each."""
    try:
        return check(value)
    except ValidationError:
        raise ValueError("expected a number from 1 on, or [least, most]") from None


Workers = Annotated[Positive | tuple[Positive, Positive], WrapValidator(_said_once)]


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
    averaging: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5,
        description="Share of the newest epoch in a running average of weights, judged beside them; the better of "
        "the two is kept. 1: no average.",
    )
    refit: Refit = Field(
        "full",
        description="What is published has learned from the held-out events too: full training anew up to the best "
        "epoch, continue from it for refit_epochs, or off. Metrics are of the model before.",
    )
    refit_epochs: Positive = Field(4, description="Passes of refit: continue over all events.")
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
    num_workers: Workers = Field(
        1, description="Training processes; [least, most]: as many as there is room for, looked at again and again."
    )
    resize_seconds: Positive = Field(
        60,
        description="With [least, most]: seconds until room for other workers is looked for again. Changing their "
        "number costs what was learned since the last epoch.",
    )
    cpus_per_worker: Positive = Field(1, description="CPUs, and compute threads, of a training process.")
    use_gpu: bool = Field(False, description="One GPU for each training process.")
    max_failures: int = Field(2, ge=0, description="Times a lost training worker is replaced.")

    @model_validator(mode="after")
    def _bounds_in_order(self) -> TrainSettings:
        if self.least_workers > self.most_workers:
            raise ValueError(f"num_workers [{self.least_workers}, {self.most_workers}]: the least is above the most")
        return self

    @property
    def least_workers(self) -> int:
        """Training processes without which nothing is learned."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """Training processes at most."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]


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
