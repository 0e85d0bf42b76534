"""Adam for embedding tables whose gradients are sparse: a step costs what its rows cost, whatever the table's size.

Parameters with sparse (or dense) gradients come in and are updated in place. It does not know which items the rows
stand for or how the learning rate moves: a scheduler of torch sets `lr` as for any other optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class RowwiseAdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019) that touches only the rows that have a gradient.

    A row that was not touched for g steps has its moments decayed by beta^g and its weights by (1 - lr * decay)^g when
    its turn comes, so the averages are those of dense AdamW; only the steps that dense AdamW would have taken on
    momentum alone are left out (the "lazy" Adam of TensorFlow leaves out the decay too, and overshoots on rare rows).
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        catch_up: bool = True,
    ) -> None:
        """The arguments of `torch.optim.AdamW`."""
        self.catch_up = catch_up
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every table that has a gradient.

        Returns:
            What `closure` returned, if there is one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, table: Tensor, group: dict[str, Any]) -> None:
        state = self.state[table]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["last_step"] = torch.zeros(table.shape[0], dtype=torch.float32, device=table.device)
            state["exp_avg"] = torch.zeros_like(table)
            state["exp_avg_sq"] = torch.zeros_like(table)
        state["step"] += 1
        step = float(state["step"])
        beta1, beta2 = group["betas"]
        rows, gradient = _rows_and_values(table)
        gap = (step - state["last_step"][rows])[:, None]
        if not self.catch_up:
            gap = torch.ones_like(gap)
        first = state["exp_avg"][rows].mul_(beta1**gap).add_(gradient, alpha=1 - beta1)
        second = state["exp_avg_sq"][rows].mul_(beta2**gap).addcmul_(gradient, gradient, value=1 - beta2)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = first, second
        state["last_step"][rows] = step
        weights = table[rows]
        if group["weight_decay"]:
            weights = weights * (1 - group["lr"] * group["weight_decay"]) ** gap
        denominator = (second / (1 - beta2**step)).sqrt_().add_(group["eps"])
        table[rows] = weights.addcdiv_(first, denominator, value=-group["lr"] / (1 - beta1**step))


def _rows_and_values(table: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that have a gradient, each once, and their gradients [rows, d]."""
    gradient = table.grad
    assert gradient is not None
    if not gradient.is_sparse:
        return torch.arange(table.shape[0], device=table.device), gradient
    gradient = gradient.coalesce()
    return gradient.indices()[0], gradient.values()
