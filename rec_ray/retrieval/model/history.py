"""Encoders of a timeline of events: one vector per position, each of which depends only on earlier events.

Input: item vectors, event types and time gaps of `b` timelines. Output: `[b, L + 1, d]`; position `t` has seen exactly
the events `0 .. t-1`, so one forward pass trains every position, and position `length` is the user as of now.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GAP_BUCKETS = 33
"""Time gaps fall into powers of two of a second: bucket 32 begins at 2**31 s, 68 years."""
CACHED_TIMELINES = 64
"""Timelines per transformer call if only their last position is needed: the activations between two layers then fit
into the cache of a core. 1,024 at once took 1.6 times as long, 8 at once 1.4 times (20 or 50 events).
"""


def init_parameter(*shape: int) -> nn.Parameter:
    """Return new weights: small random numbers."""
    return nn.Parameter(nn.init.normal_(torch.empty(*shape), std=0.02))


class EventEmbedding(nn.Module):
    """Event inputs: the sum of the item's vector, an event type embedding and a time gap embedding."""

    def __init__(self, embedding_size: int, event_types: int, time_gaps: bool) -> None:
        """event_types: rows of the event type table (index 0 is unknown); 1 or less: types are ignored."""
        super().__init__()
        # Item vectors may have unit length; the rest of the encoder expects entries of about 1.
        self.scale = math.sqrt(embedding_size)
        self.event_type = nn.Embedding(event_types, embedding_size) if event_types > 1 else None
        self.gap = nn.Embedding(GAP_BUCKETS, embedding_size) if time_gaps else None
        for table in (self.event_type, self.gap):
            if table is not None:
                nn.init.normal_(table.weight, std=0.02)

    def forward(self, vectors: Tensor, event_type: Tensor, gap_seconds: Tensor) -> Tensor:
        """vectors: [b, L, d]; event_type, gap_seconds: [b, L] -> [b, L, d]."""
        events = vectors * self.scale
        if self.event_type is not None:
            events = events + self.event_type(event_type)
        if self.gap is not None:
            events = events + self.gap(_bucket(gap_seconds))
        return events

    def summed(
        self, item_vectors: Tensor, item_index: Tensor, event_type: Tensor, gap_seconds: Tensor, length: Tensor
    ) -> Tensor:
        """Return the sum of a timeline's first `length` event inputs without computing each of them.

        item_vectors: [n, d]; item_index, event_type, gap_seconds: [b, L]; length: [b] -> [b, d].
        """
        if item_index.shape[1] == 0:
            return item_vectors.new_zeros(len(length), item_vectors.shape[1])
        counted = torch.arange(item_index.shape[1], device=length.device) < length[:, None]
        counted = counted.to(item_vectors.dtype)

        def total(table: Tensor, rows: Tensor) -> Tensor:
            return F.embedding_bag(rows, table, per_sample_weights=counted, mode="sum")

        summed = total(item_vectors, item_index) * self.scale
        if self.event_type is not None:
            summed = summed + total(self.event_type.weight, event_type)
        if self.gap is not None:
            summed = summed + total(self.gap.weight, _bucket(gap_seconds))
        return summed


def _bucket(gap_seconds: Tensor) -> Tensor:
    return gap_seconds.float().clamp(min=0).add(1).log2().long().clamp(max=GAP_BUCKETS - 1)


class MeanHistory(nn.Module):
    """Mean of the events so far, mapped once: YouTube's bag of watches (Covington et al. 2016)."""

    def __init__(self, embedding_size: int, *, event_types: int = 1, time_gaps: bool = False, dropout: float = 0.0):
        """Widths and switches as in `TransformerHistory`."""
        super().__init__()
        self.events = EventEmbedding(embedding_size, event_types, time_gaps)
        self.begin = init_parameter(embedding_size)
        self.norm = nn.LayerNorm(embedding_size)
        self.dropout = nn.Dropout(dropout)
        # Starts as the identity: a user lies close to the items of the history, as in item-kNN.
        self.output = nn.Linear(embedding_size, embedding_size)
        nn.init.zeros_(self.output.weight)
        nn.init.ones_(self.output.weight.diagonal())
        nn.init.zeros_(self.output.bias)

    def forward(self, vectors: Tensor, event_type: Tensor, gap_seconds: Tensor, length: Tensor) -> Tensor:
        """vectors: [b, L, d]; event_type, gap_seconds: [b, L]; length: [b] -> [b, L + 1, d]."""
        events = self.events(vectors, event_type, gap_seconds)
        padded = torch.arange(events.shape[1], device=length.device) >= length[:, None]
        events = events.masked_fill(padded[..., None], 0.0)
        slots = torch.cat([self.begin.expand(events.shape[0], 1, -1), events], dim=1)
        seen = torch.arange(1, slots.shape[1] + 1, device=slots.device)
        seen = torch.minimum(seen[None], length[:, None] + 1)
        mean = slots.cumsum(1) / seen[..., None]
        return self.output(self.dropout(self.norm(mean)))

    def at_end(
        self, item_vectors: Tensor, item_index: Tensor, event_type: Tensor, gap_seconds: Tensor, length: Tensor
    ) -> Tensor:
        """Return `forward` at position `length` only, [b, d], without computing the others.

        item_vectors: [n, d]; item_index: [b, L], its rows that `forward` would get; others as there.
        """
        total = self.events.summed(item_vectors, item_index, event_type, gap_seconds, length) + self.begin
        return self.output(self.dropout(self.norm(total / (length + 1)[:, None])))


class TransformerHistory(nn.Module):
    """Causal transformer over the events, with positions counted from the first (SASRec, Kang & McAuley 2018)."""

    def __init__(
        self,
        embedding_size: int,
        history_length: int,
        *,
        event_types: int = 1,
        time_gaps: bool = False,
        layers: int = 2,
        heads: int = 2,
        dropout: float = 0.2,
        norm: str = "post",
    ) -> None:
        """history_length: length of the longest timeline that `forward` accepts.

        Raises:
            ValueError: heads do not divide the embedding size, or `norm` is neither "pre" nor "post".
        """
        super().__init__()
        if embedding_size % heads:
            raise ValueError(f"heads ({heads}) must divide embedding_size ({embedding_size})")
        if norm not in ("pre", "post"):
            raise ValueError(f"norm must be 'pre' or 'post', got {norm!r}")
        self.events = EventEmbedding(embedding_size, event_types, time_gaps)
        self.begin = init_parameter(embedding_size)
        self.position = init_parameter(history_length + 1, embedding_size)
        self.input_norm = nn.LayerNorm(embedding_size)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(embedding_size, heads, dropout, norm) for _ in range(layers))
        self.output_norm = nn.LayerNorm(embedding_size) if norm == "pre" else nn.Identity()

    def forward(self, vectors: Tensor, event_type: Tensor, gap_seconds: Tensor, length: Tensor) -> Tensor:
        """vectors: [b, L, d]; event_type, gap_seconds: [b, L]; length: [b] -> [b, L + 1, d].

        Positions beyond `length` have no meaning.

        Raises:
            ValueError: L is more than `history_length`.
        """
        x = self._slots(vectors, event_type, gap_seconds)
        for block in self.blocks:
            x = block(x)
        return self.output_norm(x)

    def at_end(
        self, item_vectors: Tensor, item_index: Tensor, event_type: Tensor, gap_seconds: Tensor, length: Tensor
    ) -> Tensor:
        """As `MeanHistory.at_end`; the last block computes no other position."""
        timelines = (item_index, event_type, gap_seconds, length)
        rows = CACHED_TIMELINES if item_vectors.device.type == "cpu" else max(1, len(length))
        parts = zip(*(values.split(rows) for values in timelines), strict=True)
        return torch.cat([self._at_end(item_vectors[part[0]], *part[1:]) for part in parts])

    def _at_end(self, vectors: Tensor, event_type: Tensor, gap_seconds: Tensor, length: Tensor) -> Tensor:
        x = self._slots(vectors, event_type, gap_seconds)
        blocks = cast(list[_Block], list(self.blocks))
        for block in blocks[:-1]:
            x = block(x)
        return self.output_norm(blocks[-1].at(x, length))

    def _slots(self, vectors: Tensor, event_type: Tensor, gap_seconds: Tensor) -> Tensor:
        """Return the input of the first block, [b, L + 1, d]: slot s contains event s - 1."""
        events = self.events(vectors, event_type, gap_seconds)
        slots = torch.cat([self.begin.expand(events.shape[0], 1, -1), events], dim=1)
        n = slots.shape[1]
        if n > self.position.shape[0]:
            raise ValueError(
                f"timelines of {n - 1} events came, the model was built for {self.position.shape[0] - 1}: "
                "cut them to their latest events or raise history_length"
            )
        return cast(Tensor, self.dropout(self.input_norm(slots + self.position[:n])))


class _Block(nn.Module):
    """Self-attention and a feed-forward layer, each with dropout, a residual and a layer norm."""

    def __init__(self, size: int, heads: int, dropout: float, norm: str) -> None:
        super().__init__()
        self.heads, self.pre, self.attention_dropout = heads, norm == "pre", dropout
        self.query_key_value = nn.Linear(size, 3 * size)
        self.attention_output = nn.Linear(size, size)
        self.feed_forward = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(size), nn.LayerNorm(size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x: [b, n, d]; each position reads the slots up to its own, so that padding at the end reaches no other."""
        if self.pre:
            x = x + self.dropout(self._attend(self.norm_attention(x)))
            return x + self.dropout(self.feed_forward(self.norm_feed_forward(x)))
        x = self.norm_attention(x + self.dropout(self._attend(x)))
        return self.norm_feed_forward(x + self.dropout(self.feed_forward(x)))

    def at(self, x: Tensor, position: Tensor) -> Tensor:
        """x as in `forward`; position: [b], the requested position of each row -> [b, d]. Without dropout."""
        row = torch.arange(len(x), device=x.device)
        own, size = x[row, position], x.shape[2]
        normed = self.norm_attention(x) if self.pre else x
        weight, bias = self.query_key_value.weight, self.query_key_value.bias
        heads = (self.heads, size // self.heads)
        query = F.linear(normed[row, position], weight[:size], bias[:size]).view(-1, heads[0], 1, heads[1])
        key, value = F.linear(normed, weight[size:], bias[size:]).view(*x.shape[:2], 2, *heads).permute(2, 0, 3, 1, 4)
        mask = (torch.arange(x.shape[1], device=x.device) <= position[:, None])[:, None, None]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).reshape(-1, size)
        mixed = self.attention_output(mixed)
        if self.pre:
            own = own + mixed
            return own + self.feed_forward(self.norm_feed_forward(own))
        own = self.norm_attention(own + mixed)
        return self.norm_feed_forward(own + self.feed_forward(own))

    def _attend(self, x: Tensor) -> Tensor:
        b, n, size = x.shape
        query, key, value = self.query_key_value(x).view(b, n, 3, self.heads, size // self.heads).permute(2, 0, 3, 1, 4)
        dropout = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=dropout)
        return self.attention_output(mixed.transpose(1, 2).reshape(b, n, size))
