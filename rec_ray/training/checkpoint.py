"""How far a training is, as files: what a run that was stopped needs to go on as if it had not been.

The learner's weights and moments, the curves so far and the best weights of each stage go into a checkpoint of Ray
Train and come back from it. It does not know what the stages are, where batches come from or who decides to stop.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray.train
import torch
from safetensors.torch import load_file, save_file

from rec_ray.contracts import EpochResult
from rec_ray.logs import LOGGER
from rec_ray.retrieval.learning.learner import Learner

PROGRESS, STATE = "progress.json", "state.safetensors"

Tensors = dict[str, torch.Tensor]


@dataclass
class Progress:
    """Where a training stands.

    epochs: results of the stage that is watched. best_epoch: the best of them, 0 before the first.
    models: by stage, the weights to use. finished: stages that are done. stage, stage_epochs: the stage at work and how
    many of its epochs are done. average: running average of the weights after each of these. steps: of the finished
    stages. seconds_to_first_step: what starting the workers and reading their shards took.
    """

    epochs: list[EpochResult] = field(default_factory=list)
    best_epoch: int = 0
    models: dict[str, Tensors] = field(default_factory=dict)
    finished: list[str] = field(default_factory=list)
    stage: str = ""
    stage_epochs: int = 0
    average: Tensors = field(default_factory=dict)
    steps: int = 0
    seconds_to_first_step: float | None = None
    state: Tensors = field(default_factory=dict)

    def begin(self, stage: str) -> None:
        """Begin a stage, unless it is the one at work already."""
        if self.stage != stage:
            self.stage, self.stage_epochs, self.average = stage, 0, {}

    def average_in(self, weights: Tensors, share: float) -> None:
        """Let the running average of the stage move to the weights after one more epoch. share: how far, up to 1.

        The average stays in main memory, where a checkpoint brings it back to, whatever device the weights are on.
        """
        for name, value in weights.items():
            if name not in self.average:
                self.average[name] = value.detach().cpu().clone()
            elif value.is_floating_point():
                self.average[name].lerp_(value.detach().cpu(), share)
            else:
                self.average[name].copy_(value)

    def is_over(self, patience: int) -> bool:
        """Whether the best epoch is `patience` epochs ago."""
        return bool(self.epochs) and len(self.epochs) - self.best_epoch >= patience

    def add(self, epoch: EpochResult, *, watched: bool) -> bool:
        """Add a result; return whether it is the best so far. Without users to watch, the last is the best."""
        best = self.epochs[self.best_epoch - 1].validation_ndcg if self.best_epoch else -1.0
        self.epochs.append(epoch)
        if watched and epoch.validation_ndcg <= best:
            return False
        self.best_epoch = epoch.epoch
        return True

    def report(self, learner: Learner, epoch: EpochResult, rank: int, *, ends: bool) -> None:
        """Count an epoch of the stage and report it to Ray Train; the first worker writes the checkpoint.

        ends: whether the stage is done.
        """
        self.stage_epochs = epoch.epoch
        if ends:
            self.finished.append(self.stage)
            self.steps += learner.steps
        metrics = {"stage": self.stage, "epoch": epoch.epoch, "loss": epoch.loss}
        if epoch.validation_ndcg:
            metrics["validation_ndcg@10"] = epoch.validation_ndcg
        if rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            for stage, weights in self.models.items():
                save_file(weights, weights_file(folder, stage))
            # A stage that is done is not gone on with: its moments are not needed.
            state = {} if ends else _state_of(learner) | {f"average.{name}": w for name, w in self.average.items()}
            save_file(state, Path(folder) / STATE)
            progress = {
                "epochs": [asdict(each) for each in self.epochs],
                "best_epoch": self.best_epoch,
                "finished": self.finished,
                "stage": self.stage,
                "stage_epochs": self.stage_epochs,
                "steps": self.steps,
                "seconds_to_first_step": self.seconds_to_first_step,
            }
            (Path(folder) / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def restore(self, learner: Learner) -> None:
        """Give a fresh learner the weights, the moments and the number of steps of the checkpoint.

        Other workers than before have more or fewer steps before them; the share that is done stays.
        """
        learner.steps = round(int(self.state["steps"]) * learner.total_steps / int(self.state["total_steps"]))
        learner.model.load_state_dict(_below(self.state, "model."))
        for kind, optimizer in (("dense", learner.dense), ("tables", learner.tables)):
            entries: dict[int, Tensors] = {}
            for name, value in _below(self.state, f"{kind}.").items():
                index, key = name.split(".", 1)
                entries.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
        LOGGER.info("training goes on after epoch %d of stage %s", self.stage_epochs, self.stage)

    @classmethod
    def load(cls) -> Progress:
        """Return the progress of this run's last checkpoint, or that of a beginning."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return cls()
        with checkpoint.as_directory() as folder:
            return cls.read(folder)

    @classmethod
    def read(cls, folder: str | Path) -> Progress:
        """Return the progress that a checkpoint's folder holds."""
        plain = json.loads((Path(folder) / PROGRESS).read_text(encoding="utf-8"))
        state = load_file(Path(folder) / STATE)
        models = {file.name.split(".")[1]: load_file(file) for file in Path(folder).glob("model.*.safetensors")}
        return cls(
            epochs=[EpochResult(**epoch) for epoch in plain["epochs"]],
            best_epoch=plain["best_epoch"],
            models=models,
            finished=plain["finished"],
            stage=plain["stage"],
            stage_epochs=plain["stage_epochs"],
            steps=plain["steps"],
            average=_below(state, "average."),
            seconds_to_first_step=plain["seconds_to_first_step"],
            state=state,
        )


def weights_file(folder: str | Path, stage: str) -> Path:
    """Return where a checkpoint's folder keeps the weights of a stage."""
    return Path(folder) / f"model.{stage}.safetensors"


def _state_of(learner: Learner) -> Tensors:
    state = {f"model.{name}": value.contiguous() for name, value in learner.model.state_dict().items()}
    for kind, optimizer in (("dense", learner.dense), ("tables", learner.tables)):
        for index, entries in optimizer.state_dict()["state"].items():
            state |= {f"{kind}.{index}.{key}": torch.as_tensor(value) for key, value in entries.items()}
    return state | {"steps": torch.tensor(learner.steps), "total_steps": torch.tensor(learner.total_steps)}


def _below(state: Mapping[str, Any], prefix: str) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
