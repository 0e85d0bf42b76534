"""Progress of a training as files: attempts, curves, weights and moments, so that a stopped run can resume.

`Progress` is written to a checkpoint after each epoch and read back from it. The caller defines the stages and passes
the function that reports a checkpoint.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from rec_ray.contracts import EpochResult
from rec_ray.logs import LOGGER
from rec_ray.retrieval.learning.attempts import Attempt, has_begun, is_collapsed
from rec_ray.retrieval.learning.learner import Learner

PROGRESS, STATE = "progress.json", "state.safetensors"

Tensors = dict[str, torch.Tensor]
Send = Callable[[dict[str, Any], str | None], None]
"""Reports the metrics of an epoch; the folder of a checkpoint comes from the first worker only."""


def send_to_ray_train(metrics: dict[str, Any], folder: str | None) -> None:
    """Report an epoch to Ray Train from one of its workers."""
    # Lazy import here and in `load`: a training in a process without Ray sends its epochs elsewhere.
    import ray.train

    if folder is None:
        ray.train.report(metrics)
    else:
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


@dataclass
class AttemptRecord:
    """Results of one attempt at the watched stage.

    best_epoch: number of its best epoch, 0 before the first. done: whether the attempt ended.
    """

    attempt: Attempt
    epochs: list[EpochResult] = field(default_factory=list)
    best_epoch: int = 0
    done: bool = False

    @property
    def best(self) -> EpochResult | None:
        """Result of the best epoch."""
        return self.epochs[self.best_epoch - 1] if self.best_epoch else None

    @property
    def begun(self) -> bool:
        """True if the loss has fallen below its value at chance."""
        return any(has_begun(epoch.loss, epoch.chance) for epoch in self.epochs)

    def is_over(self, patience: int) -> bool:
        """Return whether the best epoch is `patience` epochs ago; False while the loss is at its value at chance."""
        begun = next((e.epoch for e in self.epochs if has_begun(e.loss, e.chance)), None)
        return begun is not None and len(self.epochs) - max(self.best_epoch, begun - 1) >= patience

    def has_collapsed(self, items: int) -> bool:
        """Return whether the attempt learned nothing. items: size of the catalogue."""
        best = self.best
        return best is not None and is_collapsed(begun=self.begun, mean_cosine=best.mean_cosine, items=items)

    def describe_collapse(self) -> str:
        """Return the figures of the best epoch that show the collapse."""
        best = self.best
        if best is None:
            return "no epoch"
        return (
            f"loss {best.loss:.3f}, {best.chance:.3f} by popularity alone; item vectors of effective rank "
            f"{best.effective_rank:.1f} and mean cosine {best.mean_cosine:.2f}"
        )


@dataclass
class Progress:
    """Progress of a training.

    attempts: attempts of the watched stage, in order. reason: reason for the choice of histories. chosen: index of the
    attempt with the best validation. models: stage -> weights to use. finished: finished stages. stage, attempt,
    stage_epochs: current stage, its attempt, and the number of its finished epochs. average: running average of the
    weights after each of these epochs. steps: optimizer steps of the finished attempts and stages.
    course: history and maximum number of epochs of the current stage, for its reports; not stored.
    seconds_to_first_step: from the request to the first step, including the start of the workers and reading.
    """

    attempts: list[AttemptRecord] = field(default_factory=list)
    reason: str = ""
    chosen: int = 0
    models: dict[str, Tensors] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)
    stage: str = ""
    attempt: int = 0
    stage_epochs: int = 0
    average: Tensors = field(default_factory=dict)
    steps: int = 0
    seconds_to_first_step: float | None = None
    state: Tensors = field(default_factory=dict)
    course: dict[str, Any] = field(default_factory=dict)

    @property
    def epochs(self) -> list[EpochResult]:
        """Results of the chosen attempt."""
        return self.attempts[self.chosen].epochs if self.attempts else []

    @property
    def best_epoch(self) -> int:
        """Best epoch of the chosen attempt, 0 before the first."""
        return self.attempts[self.chosen].best_epoch if self.attempts else 0

    def begin(self, stage: str, attempt: int = 0) -> None:
        """Begin an attempt at a stage, unless it is the current one already."""
        if (self.stage, self.attempt) != (stage, attempt):
            self.stage, self.attempt, self.stage_epochs, self.average = stage, attempt, 0, {}

    def average_in(self, weights: Tensors, share: float) -> None:
        """Move the running average of the stage towards the weights after another epoch. share: step size, up to 1.

        The average stays in main memory, to which a checkpoint restores it, even if the weights are on another device.
        """
        for name, value in weights.items():
            if name not in self.average:
                self.average[name] = value.detach().cpu().clone()
            elif value.is_floating_point():
                self.average[name].lerp_(value.detach().cpu(), share)
            else:
                self.average[name].copy_(value)

    def add(self, epoch: EpochResult, *, watched: bool) -> bool:
        """Add a result to the current attempt; return whether it is the best of all attempts.

        Without validation users the last result is the best.
        """
        own = self.attempts[self.attempt]
        best_of_own = -1.0 if own.best is None else own.best.validation_ndcg
        best = max((one.best.validation_ndcg for one in self.attempts if one.best is not None), default=-1.0)
        own.epochs.append(epoch)
        if watched and epoch.validation_ndcg <= best_of_own:
            return False
        own.best_epoch = epoch.epoch
        if watched and epoch.validation_ndcg <= best:
            return False
        self.chosen = self.attempt
        return True

    def report(
        self,
        learner: Learner,
        epoch: EpochResult,
        rank: int,
        *,
        ends: bool,
        watched: bool = False,
        send: Send = send_to_ray_train,
    ) -> None:
        """Count an epoch of the stage and report it; the first worker writes the checkpoint.

        ends: whether the attempt, or the stage, is done. watched: whether the stage has attempts.
        """
        self.stage_epochs = epoch.epoch
        if ends:
            self.steps += learner.steps
            if watched:
                self.attempts[self.attempt].done = True
            else:
                self.finished.append(self.stage)
        metrics: dict[str, Any] = {
            "stage": self.stage,
            "attempt": self.attempt,
            "epoch": epoch.epoch,
            "seconds": round(epoch.seconds, 3),
            "loss": epoch.loss,
            **self.course,
        }
        if epoch.validation_ndcg:
            metrics["validation_ndcg@10"] = epoch.validation_ndcg
        if watched:
            metrics |= {"effective_rank": epoch.effective_rank, "mean_cosine": epoch.mean_cosine}
        if rank != 0:
            send(metrics, None)
            return
        with tempfile.TemporaryDirectory() as folder:
            for stage, weights in self.models.items():
                save_file(weights, weights_file(folder, stage))
            # A finished attempt is not resumed, so its moments are not needed.
            state = {} if ends else _state_of(learner) | {f"average.{name}": w for name, w in self.average.items()}
            save_file(state, Path(folder) / STATE)
            progress = {
                "attempts": [asdict(each) for each in self.attempts],
                "reason": self.reason,
                "chosen": self.chosen,
                "finished": self.finished,
                "stage": self.stage,
                "attempt": self.attempt,
                "stage_epochs": self.stage_epochs,
                "steps": self.steps,
                "seconds_to_first_step": self.seconds_to_first_step,
            }
            (Path(folder) / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
            send(metrics, folder)

    def restore(self, learner: Learner) -> None:
        """Load the weights, the moments and the number of steps of the checkpoint into a fresh learner.

        With another number of workers the total number of steps differs; the finished share stays the same.
        """
        finished = round(int(self.state["steps"]) * learner.total_steps / int(self.state["total_steps"]))
        learner.model.load_state_dict(_below(self.state, "model."))
        for kind, optimizer in (("dense", learner.dense), ("tables", learner.tables)):
            entries: dict[int, Tensors] = {}
            for name, value in _below(self.state, f"{kind}.").items():
                index, key = name.split(".", 1)
                entries.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
        learner.resume(finished)
        LOGGER.info("training resumes after epoch %d of stage %s", self.stage_epochs, self.stage)

    @classmethod
    def load(cls) -> Progress:
        """Return the progress of this run's last checkpoint, or a new one."""
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return cls()
        with checkpoint.as_directory() as folder:
            return cls.read(folder)

    @classmethod
    def read(cls, folder: str | Path) -> Progress:
        """Return the progress stored in the folder of a checkpoint."""
        plain = json.loads((Path(folder) / PROGRESS).read_text(encoding="utf-8"))
        state = load_file(Path(folder) / STATE)
        models = {file.name.split(".")[1]: load_file(file) for file in Path(folder).glob("model.*.safetensors")}
        attempts = [
            AttemptRecord(
                Attempt(**one["attempt"]), [EpochResult(**e) for e in one["epochs"]], one["best_epoch"], one["done"]
            )
            for one in plain.pop("attempts")
        ]
        return cls(attempts=attempts, models=models, average=_below(state, "average."), state=state, **plain)


def weights_file(folder: str | Path, stage: str) -> Path:
    """Return the path of a stage's weights in the folder of a checkpoint."""
    return Path(folder) / f"model.{stage}.safetensors"


def _state_of(learner: Learner) -> Tensors:
    state = {f"model.{name}": value.contiguous() for name, value in learner.model.state_dict().items()}
    for kind, optimizer in (("dense", learner.dense), ("tables", learner.tables)):
        for index, entries in optimizer.state_dict()["state"].items():
            state |= {f"{kind}.{index}.{key}": torch.as_tensor(value) for key, value in entries.items()}
    return state | {"steps": torch.tensor(learner.steps), "total_steps": torch.tensor(learner.total_steps)}


def _below(state: Mapping[str, Any], prefix: str) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
