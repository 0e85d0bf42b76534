"""Losses that train a query to score its own candidate above the others, with corrections for sampled candidates.

Input: query vectors, candidate vectors and encoded item ids. Output: one scalar. The learner samples the candidates,
`gather_candidates` shares them between workers, and `softmax_loss` (or `bpr_loss`, with one negative each) scores them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

MAX_LOGITS = 2**22
"""Maximum number of logits in memory at once; positions are processed in chunks. 16 MiB of float32, the fastest
measured on a CPU."""


def inclusion_log_q(probability: Tensor, batch_draws: int, uniform_draws: int, catalogue_size: int) -> Tensor:
    """Log of the probability that an item is in a merged candidate set.

    An item with probability p is absent from m_batch draws by popularity with probability (1 - p)^m_batch, and from
    m_uniform uniform draws from N items with (1 - 1/N)^m_uniform, so

        log q = log(1 - (1 - p)^m_batch * (1 - 1/N)^m_uniform).

    For small probabilities this is log(m_batch * p + m_uniform / N), the mixture of Yang et al. (2020); the exact form
    never exceeds 0, because duplicates are merged and a popular item is one column only.
    """
    p = probability.double().clamp(min=1e-12, max=1 - 1e-7)
    stays_out = batch_draws * torch.log1p(-p)
    if uniform_draws:
        stays_out = stays_out + uniform_draws * torch.log1p(torch.tensor(-1.0 / max(catalogue_size, 2)))
    return torch.log(-torch.expm1(stays_out)).float()


class ExplicitNegatives(NamedTuple):
    """Extra negatives, such as disliked items. row: [e] int64, the position that each belongs to; candidate: [e, d]."""

    row: Tensor
    candidate: Tensor


def softmax_loss(
    query: Tensor,
    candidate: Tensor,
    target: Tensor,
    *,
    row_weight: Tensor,
    temperature: float = 0.07,
    log_q: Tensor | None = None,
    explicit: ExplicitNegatives | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Weighted sum of -log softmax of each position's target among shared candidates.

    With s = query . candidate / temperature, the logit of column j is s_j - log_q_j (the logQ correction of Bengio &
    Senecal 2008 and Yi et al. 2019; without it, frequently sampled items are penalised too often).

    query: [p, d]; candidate: [c, d], without duplicates; target: [p] int64 columns.
    row_weight: [p] of each position; with a sum of 1 the loss is a mean.
    log_q: [c], log of the probability of each column to be in the set. None: no correction (complete catalogue).
    explicit: extra negatives, each of which joins the denominator of one position only, uncorrected.
    label_smoothing: share of the target's mass that is spread over all columns.
    """
    extra = None
    if explicit is not None:
        scores = (query[explicit.row] * explicit.candidate).sum(1) / temperature
        extra = _logsumexp_by_row(scores.float(), explicit.row, len(query))
    loss: Tensor = _ChunkedSoftmax.apply(query, candidate, target, row_weight, extra, log_q, 1 / temperature)
    if label_smoothing:
        # Cross entropy against (1 - e) * target + e / c differs by e * (target's logit - mean logit): two products.
        spread = (query * (candidate[target] - candidate.mean(0))).sum(1) / temperature
        loss = loss + label_smoothing * (row_weight * spread).sum()
    return loss


def bpr_loss(query: Tensor, positive: Tensor, negative: Tensor, *, weight: Tensor | None = None) -> Tensor:
    """Weighted mean of -log sigmoid(positive score - negative score) (Rendle et al. 2009); for comparison only.

    query, positive, negative: [p, d]; weight: [p].
    """
    rows = -F.logsigmoid((query * (positive - negative)).sum(1))
    if weight is None:
        return rows.mean()
    return (rows * weight).sum() / weight.sum().clamp(min=1e-12)


def gather_candidates(candidate: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the candidates of all workers, merged by id; gradients flow back to the worker of each vector.

    candidate: [c, d] and ids: [c] int64 (no duplicates) of this worker; c may differ between workers.

    Returns:
        [u, d] and [u] int64, sorted by id, equal on every worker. A column of an own id is found with
        `torch.searchsorted`. Every worker must then divide its loss by the total weight of all workers over the number
        of workers (`global_total_weight`), so that averaging gradients gives those of one big batch.
    """
    if not _is_distributed():
        order = ids.argsort()
        return candidate[order], ids[order]
    world = dist.get_world_size()
    size = torch.tensor([len(ids)], device=ids.device)
    sizes = [torch.zeros_like(size) for _ in range(world)]
    dist.all_gather(sizes, size)
    most = int(torch.cat(sizes).max())
    padded_ids = F.pad(ids, (0, most - len(ids)), value=-1)
    all_ids = [torch.empty_like(padded_ids) for _ in range(world)]
    dist.all_gather(all_ids, padded_ids)
    padded = F.pad(candidate, (0, 0, 0, most - len(ids)))
    vectors: Tensor = _AllGather.apply(padded)
    flat_ids = torch.cat(all_ids)
    present = (flat_ids >= 0).nonzero()[:, 0]
    merged, column = torch.unique(flat_ids[present], return_inverse=True)
    # The first worker with an item supplies its vector.
    first = torch.full((len(merged),), len(flat_ids), device=ids.device)
    first = first.scatter_reduce(0, column, present, "amin")
    return vectors[first], merged


def global_total_weight(weight: Tensor) -> Tensor:
    """Return the mean over workers of the sum of weights, with which averaged gradients equal those of one big batch.

    weight: [p] of this worker -> scalar, without gradient.
    """
    total = weight.detach().sum()
    if _is_distributed():
        dist.all_reduce(total)
        total = total / dist.get_world_size()
    return total.clamp(min=1e-12)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _logsumexp_by_row(scores: Tensor, row: Tensor, rows: int) -> Tensor:
    """scores, row: [e] -> [rows]; -inf where a row has none."""
    most = torch.full((rows,), float("-inf"), device=scores.device)
    most = most.scatter_reduce(0, row, scores.detach(), "amax")
    summed = torch.zeros(rows, device=scores.device).index_add(0, row, (scores - most[row]).exp())
    return most.masked_fill(summed == 0, float("-inf")) + summed.clamp(min=1e-30).log()


class _AllGather(torch.autograd.Function):
    """All-gather along the rows whose backward sums, over workers, the gradients of this worker's rows."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local.contiguous())
        ctx.rows = len(local)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.contiguous().clone()
        dist.all_reduce(summed)
        return summed[dist.get_rank() * ctx.rows :][: ctx.rows]


class _ChunkedSoftmax(torch.autograd.Function):
    """Softmax loss in chunks: the gradient of each chunk is computed while its logits are in memory."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        candidate: Tensor,
        target: Tensor,
        row_weight: Tensor,
        extra: Tensor | None,
        log_q: Tensor | None,
        scale: float,
    ) -> Tensor:
        p, c = query.shape[0], candidate.shape[0]
        chunk = max(1, min(p, MAX_LOGITS // max(c, 1)))
        query_gradient = torch.empty_like(query)
        candidate_gradient = torch.zeros_like(candidate)
        extra_gradient = None if extra is None else torch.empty_like(extra)
        # One buffer for all chunks: allocating memory for each costs more than the product.
        buffer = torch.empty(chunk, c, device=query.device)
        loss = torch.zeros((), device=query.device)
        for start in range(0, p, chunk):
            part = slice(start, min(start + chunk, p))
            q, columns, weight = query[part].float() * scale, target[part, None], row_weight[part, None]
            logits = torch.mm(q, candidate.float().T, out=buffer[: len(q)])
            if log_q is not None:
                logits.sub_(log_q)
            of_target = logits.gather(1, columns)
            most = logits.amax(1, keepdim=True)
            logits.sub_(most).exp_()
            own = logits.gather(1, columns)
            others = logits.scatter_(1, columns, 0.0).sum(1, keepdim=True)
            summed = others + own
            total = most + summed.log()
            if extra is not None and extra_gradient is not None:
                seen = total
                total = torch.logaddexp(seen, extra[part, None])
                extra_gradient[part] = (weight * (extra[part, None] - total).exp())[:, 0]
                added = summed * torch.expm1(total - seen)
                others, summed = others + added, summed + added
            loss += (weight * (total - of_target)).sum()
            # With p - 1 in the target's column, as the negative sum of the others, no product has to be subtracted from
            # another one: in bf16 that difference lost most of its digits where the loss is low.
            logits.scatter_(1, columns, -others)
            # The softmax is never normalised in place: a row's factor goes to the small side of each product.
            factor = weight / summed
            query_gradient[part] = (logits @ candidate.float()).float().mul_(factor * scale).to(query.dtype)
            candidate_gradient += (logits.T @ (q * factor)).to(candidate.dtype)
        ctx.save_for_backward(query_gradient, candidate_gradient, extra_gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        query, candidate, extra = ctx.saved_tensors
        extra = None if extra is None else extra * gradient
        return query * gradient, candidate * gradient, None, None, extra, None, None
