"""Settings of training.

Input: plain values. Output: a frozen section.
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
    """Reject a value of another kind with one message; pydantic would give one message for each kind."""
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
"""Minimum steps of a training, and steps without a better validation before it stops, with `train.epochs: auto`."""

Workers = Annotated[Positive | tuple[Positive, Positive], WrapValidator(_workers)]
PositiveOrAuto = Annotated[Positive | Literal["auto"], WrapValidator(_number_or_auto)]


# YAML reads unquoted ids as numbers.
UserId = Annotated[str, BeforeValidator(lambda user: str(user) if isinstance(user, int) else user)]


class TrainSettings(Section):
    """Training of the two towers."""

    epochs: PositiveOrAuto = Field(
        "auto", description="Maximum passes over the training events; auto: 8, or as many as make 600 steps."
    )
    patience: Positive = Field(
        3,
        description="Epochs without a better validation NDCG@10 before stopping; with epochs: auto 150 steps or more.",
    )
    batch_size: Positive = Field(512, description="Events in a batch of one worker.")
    learning_rate: float = Field(3e-3, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay of the dense weights.")
    warmup: Fraction = Field(0.05, description="Share of the steps in which the learning rate rises.")
    temperature: float = Field(0.07, gt=0, description="Divisor of the similarities before the softmax.")
    ahead: PositiveOrAuto = Field(
        "auto",
        description="Number of next events from which a target is drawn; auto: as many as a user has in the validation "
        "period (1 with leave_one_out), because evaluation counts all of them.",
    )
    loss: Literal["softmax", "bpr"] = Field("softmax", description="Softmax over many negatives, or pairwise.")
    in_batch_negatives: bool = Field(True, description="Other positives of the batch are negatives.")
    uniform_negatives: int = Field(2048, ge=0, description="Uniformly drawn negative items, shared by a batch.")
    log_q: bool = Field(True, description="Correct the softmax for the probability that an item is a negative.")
    explicit_negatives: bool = Field(
        True, description="Add events of negative types to the softmax denominator of their user's positives."
    )
    label_smoothing: Fraction = Field(0.0, description="Share of a target's probability that is spread over all items.")
    averaging: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5,
        description="Share of the newest epoch in a running average of the weights; validation keeps the better of "
        "average and weights. 1: no average.",
    )
    refit: Refit = Field(
        "full",
        description="Train the published model on the held-out events too: full, from the start up to the best epoch; "
        "continue, from that epoch for refit_epochs; or off. Metrics are those of the model before the refit.",
    )
    refit_epochs: Positive = Field(4, description="Passes of refit: continue over all events.")
    refit_check: bool = Field(
        True, description="Also evaluate a model refitted with the validation events alone, to measure the refit."
    )
    warm_start: WarmStart = Field("off", description="Start from the weights of the live version, or off.")
    precision: Literal["auto", "bf16", "float32"] = Field(
        "auto", description="Precision of matrix products in training; auto: bf16 on a GPU, else float32."
    )
    cache_bytes: int = Field(
        2_000_000_000, ge=0, description="Maximum size of a worker's timelines kept in memory; larger ones stream."
    )
    seed: int = Field(0, ge=0, description="Random seed; makes a run on one worker repeatable.")
    num_workers: Workers = Field(
        1, description="Training processes; [least, most]: as many as fit, checked every resize_seconds."
    )
    resize_seconds: Positive = Field(
        60,
        description="With [least, most]: seconds between checks for free resources. Changing the number of workers "
        "loses the training since the last epoch.",
    )
    cpus_per_worker: Positive = Field(1, description="CPUs, and compute threads, of a training process.")
    use_gpu: bool = Field(False, description="One GPU for each training process.")
    max_failures: int = Field(2, ge=0, description="Maximum number of times that a lost training worker is replaced.")

    @model_validator(mode="after")
    def _bounds_in_order(self) -> TrainSettings:
        if self.least_workers > self.most_workers:
            raise ValueError(f"num_workers [{self.least_workers}, {self.most_workers}]: the least is above the most")
        return self

    def passes(self, steps: int) -> int:
        """Return the maximum passes over the training events. steps: of one pass."""
        if self.epochs != "auto":
            return self.epochs
        return max(USUAL_EPOCHS, min(MOST_EPOCHS, -(-LEAST_STEPS // max(1, steps))))

    def patient_passes(self, steps: int) -> int:
        """Return the passes without a better validation before training stops. steps: of one pass."""
        return self.patience if self.epochs != "auto" else max(self.patience, -(-PATIENT_STEPS // max(1, steps)))

    @property
    def least_workers(self) -> int:
        """Minimum number of training processes."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """Maximum number of training processes."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]
