"""Losses: each correction against numbers worked by hand, and several workers against one."""

import math
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn import functional as F

from rec_ray.retrieval.learning import losses
from rec_ray.retrieval.learning.losses import (
    ExplicitNegatives,
    bpr_loss,
    gather_candidates,
    global_total_weight,
    inclusion_log_q,
    softmax_loss,
)

# Two candidates with scores 1 and 2 for one query (temperature 1).
QUERY, CANDIDATE = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [2.0, 0.0]])


def first_target_loss(**options: object) -> float:
    return float(
        softmax_loss(QUERY, CANDIDATE, torch.tensor([0]), temperature=1.0, row_weight=torch.ones(1), **options)
    )


def test_softmax_by_hand() -> None:
    # -log(e^1 / (e^1 + e^2)) = log(1 + e)
    assert first_target_loss() == pytest.approx(math.log(1 + math.e))


def test_log_q_is_subtracted_from_the_logits() -> None:
    # q = (1/2, 1/4): e^1 * 2 and e^2 * 4, so the loss is log(1 + 2e). A plus sign would give log(1 + e/2).
    log_q = torch.tensor([0.5, 0.25]).log()
    assert first_target_loss(log_q=log_q) == pytest.approx(math.log(1 + 2 * math.e))


def test_temperature_divides_the_scores() -> None:
    loss = softmax_loss(QUERY, CANDIDATE, torch.tensor([0]), temperature=0.5, row_weight=torch.ones(1))
    assert float(loss) == pytest.approx(math.log(1 + math.e**2))


def test_explicit_negatives_join_the_denominator_of_their_row_only() -> None:
    query = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    loss = softmax_loss(
        query,
        CANDIDATE,
        torch.tensor([0, 0]),
        temperature=1.0,
        row_weight=torch.full((2,), 0.5),
        explicit=ExplicitNegatives(torch.tensor([1, 1]), torch.tensor([[3.0, 5.0], [0.0, 5.0]])),
    )
    # Row 0: log(1 + e). Row 1: e^1 + e^2 + e^3 + e^0 over e^1.
    second = math.log(math.e + math.e**2 + math.e**3 + 1) - 1
    assert float(loss) == pytest.approx((math.log(1 + math.e) + second) / 2)


def test_weights_are_a_weighted_mean() -> None:
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    loss = softmax_loss(query, CANDIDATE, torch.tensor([0, 0]), temperature=1.0, row_weight=torch.tensor([0.75, 0.25]))
    assert float(loss) == pytest.approx((3 * math.log(1 + math.e) + math.log(2)) / 4)


def test_label_smoothing_is_torchs() -> None:
    torch.manual_seed(0)
    query, candidate, target = torch.randn(6, 4), torch.randn(9, 4), torch.arange(6)
    loss = softmax_loss(
        query, candidate, target, temperature=1.0, row_weight=torch.full((6,), 1 / 6), label_smoothing=0.1
    )
    torch.testing.assert_close(loss, F.cross_entropy(query @ candidate.T, target, label_smoothing=0.1))


@pytest.mark.parametrize("max_logits", [1, 40, 10**6])
def test_gradients_are_those_of_plain_softmax_whatever_the_chunk(
    max_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "MAX_LOGITS", max_logits)
    torch.manual_seed(0)
    query, candidate = torch.randn(7, 4, requires_grad=True), torch.randn(11, 4, requires_grad=True)
    disliked = torch.randn(3, 4, requires_grad=True)
    target, row = torch.tensor([0, 3, 3, 10, 5, 1, 2]), torch.tensor([1, 1, 6])
    log_q, weight = -torch.rand(11), torch.rand(7)

    ours = 3 * softmax_loss(
        query,
        candidate,
        target,
        temperature=0.5,
        log_q=log_q,
        row_weight=weight / weight.sum(),
        explicit=ExplicitNegatives(row, disliked),
    )
    got = torch.autograd.grad(ours, (query, candidate, disliked))

    logits = query @ candidate.T / 0.5 - log_q
    extra = torch.full((7, 3), float("-inf"))
    extra[row, torch.arange(3)] = (query[row] * disliked).sum(1) / 0.5
    rows = F.cross_entropy(torch.cat([logits, extra], dim=1), target, reduction="none")
    plain = 3 * (rows * weight).sum() / weight.sum()
    torch.testing.assert_close(ours, plain)
    for mine, theirs in zip(got, torch.autograd.grad(plain, (query, candidate, disliked)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_inclusion_by_hand_and_in_the_limit() -> None:
    # p = 1/2, two batch draws and one uniform draw of four items: 1 - (1/2)^2 * 3/4 = 13/16.
    assert float(inclusion_log_q(torch.tensor([0.5]), 2, 1, 4).exp()) == pytest.approx(13 / 16)
    # Rare items: the mixture of Yang et al., m_batch * p + m_uniform / N.
    assert float(inclusion_log_q(torch.tensor([1e-6]), 100, 10, 10**6).exp()) == pytest.approx(1.1e-4, rel=1e-3)
    # No uniform draws: the in-batch correction of Yi et al., b * p.
    assert float(inclusion_log_q(torch.tensor([1e-6]), 100, 0, 10**6).exp()) == pytest.approx(1e-4, rel=1e-3)


def test_bpr_by_hand() -> None:
    # Scores 1 and 2: -log sigmoid(-1).
    loss = bpr_loss(QUERY, CANDIDATE[:1], CANDIDATE[1:])
    assert float(loss) == pytest.approx(math.log(1 + math.e))


def worker_data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(8, 5, generator=generator),
        torch.tensor([1, 2, 3, 3, 4, 2, 1, 1]),  # both halves share items
        torch.rand(8, generator=generator) + 0.1,
    )


def worker_loss(users: Tensor, items: Tensor, part: slice) -> Tensor:
    inputs, positives, weight = (values[part] for values in worker_data())
    own = torch.unique(positives)
    candidate, ids = gather_candidates(torch.tanh(items)[own], own)
    log_q = inclusion_log_q(torch.tensor([0.1, 0.4, 0.2, 0.2, 0.1])[ids], 8, 0, 4)
    return softmax_loss(
        torch.tanh(inputs @ users),
        candidate,
        torch.searchsorted(ids, positives),
        log_q=log_q,
        row_weight=weight / global_total_weight(weight),
    )


def worker_parameters() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    users = torch.randn(5, 5, generator=generator).requires_grad_()
    return users, torch.randn(5, 5, generator=generator).requires_grad_()


def run_worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    users, items = worker_parameters()
    # Parts of different size: 5 and 3 positions.
    worker_loss(users, items, slice(0, 5) if rank == 0 else slice(5, 8)).backward()
    for parameter in (users, items):
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad)
        parameter.grad /= 2  # what DistributedDataParallel does
    if rank == 0:
        torch.save([users.grad, items.grad], Path(folder) / "gradients.pt")
    dist.destroy_process_group()


@pytest.mark.usefixtures("processes")
def test_two_workers_have_the_gradients_of_one_with_the_whole_batch(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(run_worker, args=(port, str(tmp_path)), nprocs=2)
    users, items = worker_parameters()
    worker_loss(users, items, slice(0, 8)).backward()
    of_two = torch.load(tmp_path / "gradients.pt")
    torch.testing.assert_close(of_two[0], users.grad)
    torch.testing.assert_close(of_two[1], items.grad)


@pytest.mark.parametrize("loss", [0.4, 0.013, 0.001])
def test_gradients_in_half_precision_stay_near_float64_at_any_loss(loss: float) -> None:
    """Error of bf16 is 0.4 % of each factor; a difference of two rounded products had 19 % at a loss of 0.013."""
    generator = torch.Generator().manual_seed(3)
    candidate = torch.nn.functional.normalize(torch.randn(300, 64, generator=generator, dtype=torch.float64), dim=1)
    target = torch.arange(40) * 7
    own, others = candidate[target], candidate[(target + 1) % 300]

    def mix(share: float) -> torch.Tensor:
        return torch.nn.functional.normalize(share * own + (1 - share) * others, dim=1)

    low, high = 0.3, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if exact_softmax(mix(middle), candidate, target) < loss else (middle, high)
    gradients = []
    for half in (False, True):
        query = mix(high).to(torch.float32 if half else torch.float64).clone().requires_grad_()
        items = candidate.to(query.dtype).clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            if half:
                softmax_loss(query, items, target, row_weight=torch.full((len(target),), 1 / len(target))).backward()
            else:
                exact_softmax(query, items, target).backward()
        gradients.append((query.grad.double(), items.grad.double()))
    assert float(exact_softmax(mix(high), candidate, target)) == pytest.approx(loss, rel=0.2)
    for wanted, found in zip(*gradients, strict=True):
        assert float((found - wanted).norm() / wanted.norm()) < 0.01


def exact_softmax(query: torch.Tensor, items: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(query @ items.T / 0.07, target)
