"""The progress of a training: when it is over, which epoch is the best, and the average of the weights."""

import torch

from rec_ray.contracts import EpochResult
from rec_ray.retrieval.learning.attempts import Attempt
from rec_ray.training.checkpoint import AttemptRecord, Progress


class Steps:
    """A learner of which only the steps count."""

    def __init__(self, total: int) -> None:
        self.total_steps = total
        self.model, self.dense, self.tables = torch.nn.Linear(1, 1), *(torch.optim.SGD([torch.zeros(1)]) for _ in "ab")

    def resume(self, steps: int) -> None:
        self.steps = steps


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


def epoch(number: int, ndcg: float, loss: float = 1.0, chance: float = 0.0) -> EpochResult:
    return EpochResult(number, loss, ndcg, 1.0, 1.0, chance=chance)


def test_an_attempt_is_over_when_its_best_epoch_is_long_ago() -> None:
    progress = Progress(attempts=[AttemptRecord(Attempt("mean"))])
    improved = [progress.add(epoch(n, ndcg), watched=True) for n, ndcg in enumerate([0.1, 0.3, 0.2, 0.3], start=1)]
    assert improved == [True, True, False, False]
    record = progress.attempts[0]
    assert progress.best_epoch == 2 and record.is_over(2) and not record.is_over(3)


def test_patience_counts_from_the_epoch_in_which_the_loss_left_its_value_at_chance() -> None:
    losses = [5.1, 5.0, 5.0, 4.99, 4.0, 3.9, 3.8]
    record = AttemptRecord(Attempt("transformer"))
    over = []
    for number, loss in enumerate(losses, start=1):
        record.epochs.append(epoch(number, 0.1, loss, chance=5.0))
        record.best_epoch = 1
        over.append(record.is_over(2))
    assert over == [False] * 5 + [True] * 2
    assert record.begun and not AttemptRecord(Attempt("mean"), record.epochs[:4], 1).begun


def test_the_best_epoch_of_all_attempts_is_chosen() -> None:
    progress = Progress(attempts=[AttemptRecord(Attempt("mean")), AttemptRecord(Attempt("transformer"))])
    improved = []
    for attempt, figures in enumerate([[0.2, 0.3], [0.1, 0.25, 0.4]]):
        progress.begin("learn", attempt)
        improved += [progress.add(epoch(n, ndcg), watched=True) for n, ndcg in enumerate(figures, start=1)]
    assert improved == [True, True, False, False, True]
    assert (progress.chosen, progress.best_epoch, progress.attempts[0].best_epoch) == (1, 3, 2)


def test_other_workers_go_on_after_the_same_share_of_the_steps() -> None:
    model = torch.nn.Linear(1, 1)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    progress = Progress(state=state | {"steps": torch.tensor(300), "total_steps": torch.tensor(800)})
    same, twice = Steps(800), Steps(401)
    progress.restore(same)
    progress.restore(twice)

    assert (same.steps, twice.steps) == (300, 150)
    assert torch.equal(twice.model.weight, model.weight)
