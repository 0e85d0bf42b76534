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

# YAML reads an unquoted off as false.
Refit = Annotated[Literal["continue", "full", "off"], BeforeValidator(lambda refit: "off" if refit is False else refit)]
WarmStart = Annotated[Literal["live", "off"], BeforeValidator(lambda start: "off" if start is False else start)]
History = Literal["as_of_event", "as_of_now"]


def _one_message(value: Any, check: ValidatorFunctionWrapHandler, expected: str) -> Any:
    """Refuse with one message a value of neither kind; pydantic has a message for each."""
    try:
        return check(value)
    except ValidationError:
        raise ValueError(f"expected a number from 1 on, or {expected}") from None


def _workers(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    return _one_message(value, check, "[least, most]")


def _number_or_auto(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    return _one_message(value, check, "auto")


USUAL_EPOCHS, MOST_EPOCHS = 8, 100
LEAST_STEPS, PATIENT_STEPS = 600, 150
"""With `train.epochs: auto`: steps of a training at least, and steps without a better validation before it stops."""

Workers = Annotated[Positive | tuple[Positive, Positive], WrapValidator(_workers)]
PositiveOrAuto = Annotated[Positive | Literal["auto"], WrapValidator(_number_or_auto)]


# YAML reads unquoted ids as numbers.
UserId = Annotated[str, BeforeValidator(lambda user: str(user) if isinstance(user, int) else user)]


class TrainSettings(Section):
    """How the towers learn."""

    epochs: PositiveOrAuto = Field(
        "auto", description="Passes over the training events at most; auto: 8, or as many as make 600 steps."
    )
    patience: Positive = Field(
        3,
        description="Epochs without a better validation NDCG@10 before stopping; with epochs: auto 150 steps or more.",
    )
    batch_size: Positive = Field(512, description="Events in a batch of one worker.")
    learning_rate: float = Field(3e-3, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of the dense weights.")
    warmup: Fraction = Field(0.05, description="Share of the steps in which the learning rate rises.")
    temperature: float = Field(0.07, gt=0, description="Divides similarities before the softmax.")
    ahead: PositiveOrAuto = Field(
        "auto",
        description="A target is drawn from the next so many events; auto: as many as a user has in the validation "
        "period (1 with leave_one_out), because the lists are judged by all of them.",
    )
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

    def passes(self, steps: int) -> int:
        """Return the passes over the training events at most. steps: of one pass."""
        if self.epochs != "auto":
            return self.epochs
        return max(USUAL_EPOCHS, min(MOST_EPOCHS, -(-LEAST_STEPS // max(1, steps))))

    def patient_passes(self, steps: int) -> int:
        """Return the passes without a better validation before stopping. steps: of one pass."""
        return self.patience if self.epochs != "auto" else max(self.patience, -(-PATIENT_STEPS // max(1, steps)))

    @property
    def least_workers(self) -> int:
        """Training processes without which nothing is learned."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """Training processes at most."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]
