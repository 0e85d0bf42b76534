"""The progress of a training: when it is over, which epoch is the best, and the average of the weights."""

import torch

from rec_ray.contracts import EpochResult
from rec_ray.training.checkpoint import Progress


class Steps:
    """A learner of which only the steps count."""

    def __init__(self, total: int) -> None:
        self.total_steps, self.steps = total, 0
        self.model, self.dense, self.tables = torch.nn.Linear(1, 1), *(torch.optim.SGD([torch.zeros(1)]) for _ in "ab")


def test_the_average_moves_by_its_share_and_begins_anew_with_a_stage() -> None:
    progress = Progress()
    progress.begin("learn")
    for value in (0.0, 4.0, 8.0):
        weights = {"table": torch.full((2, 3), value), "steps": torch.tensor(int(value))}
        progress.average_in(weights, 0.5)
        weights["table"].fill_(99.0)
    assert progress.average["table"].tolist() == [[5.0] * 3] * 2
    assert progress.average["steps"] == 8, "a count is not averaged"
    progress.begin("learn")
    assert progress.average
    progress.begin("check")
    assert not progress.average


def test_training_is_over_when_the_best_epoch_is_long_ago() -> None:
    progress = Progress()
    improved = [
        progress.add(EpochResult(number, 1.0, ndcg, 1.0, 1.0), watched=True)
        for number, ndcg in enumerate([0.1, 0.3, 0.2, 0.3], start=1)
    ]
    assert improved == [True, True, False, False]
    assert progress.best_epoch == 2 and progress.is_over(2) and not progress.is_over(3)


def test_other_workers_go_on_after_the_same_share_of_the_steps() -> None:
    model = torch.nn.Linear(1, 1)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    progress = Progress(state=state | {"steps": torch.tensor(300), "total_steps": torch.tensor(800)})
    same, twice = Steps(800), Steps(401)
    progress.restore(same)
    progress.restore(twice)

    assert (same.steps, twice.steps) == (300, 150)
    assert torch.equal(twice.model.weight, model.weight)
