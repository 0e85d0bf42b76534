"""Adam for embedding tables with sparse gradients: the cost of a step depends on its rows, not on the table size.

Parameters with sparse (or dense) gradients are updated in place. A scheduler of torch sets `lr` as for any other
optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class RowwiseAdam(torch.optim.Optimizer):
    """Adam (Kingma & Ba 2015) without momentum that updates only the rows with a gradient.

    After g steps without a gradient, the next update of a row decays its second moment by beta2^g, as dense Adam would
    have done. So a rare row takes larger steps, which compensates for their small number. Momentum would not move a row
    without gradients, and a row whose momentum has decayed would take small steps; docs/experiments.md compares them.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float = 3e-3, beta2: float = 0.999, eps: float = 1e-8) -> None:
        """Arguments as in `torch.optim.Adam`; beta2 is the second of its `betas`."""
        super().__init__(parameters, {"lr": lr, "beta2": beta2, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every table that has a gradient.

        Returns:
            Result of `closure`, if there is one.
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
        beta2 = group["beta2"]
        state = self.state[table]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["last_step"] = torch.zeros(table.shape[0], dtype=torch.float32, device=table.device)
            state["exp_avg_sq"] = torch.zeros_like(table)
        state["step"] += 1
        step = float(state["step"])
        rows, gradient = rows_and_values(table)
        gap = (step - state["last_step"][rows])[:, None]
        state["last_step"][rows] = step
        second = state["exp_avg_sq"][rows].mul_(beta2**gap).addcmul_(gradient, gradient, value=1 - beta2)
        state["exp_avg_sq"][rows] = second
        denominator = (second / (1 - beta2**step)).sqrt_().add_(group["eps"])
        table[rows] = table[rows].addcdiv_(gradient, denominator, value=-group["lr"])


def rows_and_values(table: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct rows with a gradient, and their gradients [rows, d]."""
    gradient = table.grad
    assert gradient is not None
    if not gradient.is_sparse:
        # As `any(dim=1)`, which is eight times slower.
        rows = (gradient.abs().amax(1) != 0).nonzero()[:, 0]
        return rows, gradient[rows]
    gradient = gradient.coalesce()
    return gradient.indices()[0], gradient.values()
