"""Average of the gradients of several workers: dense ones in one message, those of tables by the touched rows.

On each worker of torch.distributed, the gradients of the model are replaced by the mean over all workers; with one
process nothing changes.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from rec_ray.retrieval.learning.optimizer import rows_and_values
from rec_ray.retrieval.model.towers import TwoTower


def world_size() -> int:
    """Number of workers, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def average_gradients(model: TwoTower) -> None:
    """Average the gradients of all workers: dense ones in one message, of tables only the rows that any worker has."""
    world = world_size()
    if world == 1:
        return
    dense = [parameter for parameter in model.dense_parameters() if parameter.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in dense]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world
    for parameter, part in zip(dense, flat.split([p.numel() for p in dense]), strict=True):
        parameter.grad = part.view_as(parameter)
    for table in model.sparse_parameters():
        if table.grad is None:
            rows, values = torch.zeros(0, dtype=torch.long), torch.zeros(0, table.shape[1])
        else:
            rows, values = rows_and_values(table)
        rows, values = _gather_rows(rows.to(table.device), values.to(table.device), world)
        table.grad = torch.sparse_coo_tensor(rows[None], values / world, table.shape).coalesce()


def _gather_rows(rows: Tensor, values: Tensor, world: int) -> tuple[Tensor, Tensor]:
    size = torch.tensor([len(rows)], device=rows.device)
    sizes = [torch.zeros_like(size) for _ in range(world)]
    dist.all_gather(sizes, size)
    most = max(int(s) for s in sizes)
    padded_rows = torch.nn.functional.pad(rows, (0, most - len(rows)))
    padded_values = torch.nn.functional.pad(values, (0, 0, 0, most - len(values)))
    all_rows = [torch.empty_like(padded_rows) for _ in range(world)]
    all_values = [torch.empty_like(padded_values) for _ in range(world)]
    dist.all_gather(all_rows, padded_rows)
    dist.all_gather(all_values, padded_values)
    kept_rows = [r[: int(s)] for r, s in zip(all_rows, sizes, strict=True)]
    kept_values = [v[: int(s)] for v, s in zip(all_values, sizes, strict=True)]
    return torch.cat(kept_rows), torch.cat(kept_values)
