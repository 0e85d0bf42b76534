"""The row-wise optimizer against torch's Adam without momentum, and what it leaves alone."""

import copy

import torch

from rec_ray.retrieval.learning.optimizer import RowwiseAdam


def tables(rows: int = 6) -> tuple[torch.nn.Embedding, torch.nn.Embedding]:
    torch.manual_seed(0)
    sparse = torch.nn.Embedding(rows, 4, sparse=True)
    dense = torch.nn.Embedding(rows, 4)
    dense.load_state_dict(sparse.state_dict())
    return sparse, dense


def test_equals_dense_adam_when_every_row_is_touched_at_each_step() -> None:
    sparse, dense = tables()
    ours = RowwiseAdam(sparse.parameters(), lr=0.01)
    torchs = torch.optim.Adam(dense.parameters(), lr=0.01, betas=(0.0, 0.999))
    index = torch.tensor([0, 1, 2, 3, 4, 5, 5, 0])  # repeats add up
    for step in range(5):
        for table, optimizer in ((sparse, ours), (dense, torchs)):
            optimizer.zero_grad()
            (table(index) * torch.arange(1.0 + step, 5.0 + step)).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(sparse.weight, dense.weight)


def test_the_second_moment_of_a_row_that_paused_is_that_of_dense_adam() -> None:
    sparse, dense = tables()
    ours = RowwiseAdam(sparse.parameters(), lr=0.01)
    torchs = torch.optim.Adam(dense.parameters(), lr=0.01, betas=(0.0, 0.999))
    for index in ([0, 1], [1], [1], [1], [0, 1]):
        for table, optimizer in ((sparse, ours), (dense, torchs)):
            optimizer.zero_grad()
            (table(torch.tensor(index)) * torch.tensor([1.0, -2.0, 3.0, 0.5])).sum().backward()
            optimizer.step()
    moments = [
        optimizer.state[table.weight]["exp_avg_sq"][:2] for table, optimizer in ((sparse, ours), (dense, torchs))
    ]
    torch.testing.assert_close(*moments)


def test_rows_without_gradient_keep_their_weights() -> None:
    sparse, _ = tables()
    before = sparse.weight.detach().clone()
    optimizer = RowwiseAdam(sparse.parameters(), lr=0.1)
    sparse(torch.tensor([2, 2])).sum().backward()
    optimizer.step()
    untouched = torch.tensor([0, 1, 3, 4, 5])
    torch.testing.assert_close(sparse.weight[untouched], before[untouched], rtol=0, atol=0)
    assert (sparse.weight[2] != before[2]).all()


def test_state_survives_a_checkpoint() -> None:
    first, second = tables()
    second.sparse = True
    one = RowwiseAdam(first.parameters(), lr=0.01)
    first(torch.tensor([1, 2])).sum().backward()
    one.step()
    second.load_state_dict(first.state_dict())
    two = RowwiseAdam(second.parameters(), lr=0.01)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for table, optimizer in ((first, one), (second, two)):
        optimizer.zero_grad()
        table(torch.tensor([1, 3])).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(first.weight, second.weight, rtol=0, atol=0)
