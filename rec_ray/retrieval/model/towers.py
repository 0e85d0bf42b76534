"""The two towers: one computes a vector per item, the other a user vector at every position of a timeline.

Input: encoded ids, `FeatureBatch`es and timelines. Output: vectors of one size, of unit length if the similarity is
cosine, so that the product of a user and an item vector is the score. `build_two_tower` takes plain JSON-able
arguments, which a bundle stores beside the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rec_ray.retrieval.features.batch import FeatureBatch, FeatureShape
from rec_ray.retrieval.features.timelines import TimelineInputs
from rec_ray.retrieval.model.history import MeanHistory, TransformerHistory, init_parameter

TABLE_STD = 0.02
"""Standard deviation of initial weights. Under cosine a step turns a row by learning rate over length, so short rows
learn faster; see docs/experiments.md."""


HISTORY_ROW_DROPOUT = 0.25
"""Probability in training that a history item is read without its second row, if there is any dropout. Without it the
second rows overfit small data; see docs/experiments.md."""


SPARSE_ROWS = 32_768
"""Number of rows from which a table has sparse gradients. In a smaller table a step touches most rows, and adding up
the repeated rows of a sparse gradient costs more than it saves."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Sizes and kinds of both towers. item_shape, user_shape: `dataclasses.asdict` of a `FeatureShape`.

    history: "none" (features only), "mean" or "transformer". similarity: "cosine" or "dot".
    """

    vocabulary_size: int
    item_shape: Mapping[str, int]
    user_shape: Mapping[str, int]
    embedding_size: int = 64
    similarity: str = "cosine"
    id_dropout: float = 0.1
    history: str = "transformer"
    history_length: int = 50
    event_types: int = 1
    layers: int = 2
    heads: int = 2
    dropout: float = 0.2
    norm: str = "post"
    time_gaps: bool = False
    history_rows: bool = False


def _table(rows: int, embedding_size: int) -> nn.Embedding:
    table = nn.Embedding(rows, embedding_size, sparse=rows >= SPARSE_ROWS)
    nn.init.normal_(table.weight, std=TABLE_STD)
    return table


class FeatureEncoder(nn.Module):
    """Encoder of the features of a row: the sum of each field's mean token vector and a linear map of the numbers."""

    def __init__(self, shape: FeatureShape, embedding_size: int, hidden: int = 0, dropout: float = 0.0) -> None:
        """hidden: width of a residual MLP on the sum, with which features interact; 0 means none."""
        super().__init__()
        self.shape, self.embedding_size = shape, embedding_size
        self.tokens = _table(shape.tokens, embedding_size) if shape.fields else None
        width = shape.numeric + shape.vector
        self.dense = nn.Linear(width, embedding_size) if width else None
        self.interaction = (
            nn.Sequential(
                nn.LayerNorm(embedding_size),
                nn.Linear(embedding_size, hidden),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(hidden, embedding_size),
            )
            if hidden and not shape.is_empty
            else None
        )
        self._balance()

    @torch.no_grad()
    def _balance(self) -> None:
        """Draw initial weights so that the sum of all features has the length of an id row, with equal shares.

        Under cosine a long component that all rows share hides the others, and takes thousands of steps to turn.
        """
        numbers = self.shape.numeric // 2
        share = TABLE_STD / math.sqrt(max(1, self.shape.fields + numbers + (self.shape.vector > 0)))
        if self.tokens is not None:
            nn.init.normal_(self.tokens.weight, std=share)
        if self.dense is not None:
            nn.init.normal_(self.dense.weight, std=share)
            # The second column of a number marks it as missing: its rows do not differ at first.
            self.dense.weight[:, 1 : self.shape.numeric : 2] = 0.0
            self.dense.weight[:, self.shape.numeric :] /= math.sqrt(max(1, self.shape.vector))
            nn.init.zeros_(self.dense.bias)
        if self.interaction is not None:
            last = cast(nn.Linear, self.interaction[-1])
            nn.init.normal_(last.weight, std=TABLE_STD / math.sqrt(last.in_features))
            nn.init.zeros_(last.bias)

    def forward(self, features: FeatureBatch) -> Tensor:
        """Features of n rows -> [n, d]; zeros if the shape is empty."""
        n = len(features)
        encoded = torch.zeros(n, self.embedding_size, device=features.numeric.device)
        if self.tokens is not None:
            counts = features.token_counts.reshape(-1)
            offsets = counts.cumsum(0) - counts
            bags = F.embedding_bag(features.tokens, self.tokens.weight, offsets, mode="mean", sparse=self.tokens.sparse)
            encoded = encoded + bags.view(n, self.shape.fields, self.embedding_size).sum(1)
        if self.dense is not None:
            encoded = encoded + self.dense(torch.cat([features.numeric, features.vector], dim=1))
        if self.interaction is not None:
            encoded = encoded + self.interaction(encoded)
        return encoded


class ItemTower(nn.Module):
    """Item tower: the row of the item's id plus the encoding of its features."""

    def __init__(
        self,
        vocabulary_size: int,
        shape: FeatureShape,
        embedding_size: int,
        *,
        id_dropout: float = 0.1,
        history_rows: bool = False,
        history_row_dropout: float = 0.0,
    ) -> None:
        """vocabulary_size: rows of the id table, row 0 for unknown ids.

        id_dropout: probability in training that an item is treated as unknown, so that features learn to represent
            items without history (DropoutNet, Volkovs et al. 2017). Without features it is switched off.
        history_rows: whether an item has a second row for history input: items that follow each other need not be
            similar, and one vector for both roles can express only similarity.
        history_row_dropout: probability in training that a history item is read without its second row.
        """
        super().__init__()
        self.id_dropout = 0.0 if shape.is_empty else id_dropout
        self.ids = _table(vocabulary_size, embedding_size)
        self.history_ids = _table(vocabulary_size, embedding_size) if history_rows else None
        self.history_row_dropout = history_row_dropout
        with torch.no_grad():
            for table in (self.ids, self.history_ids):
                if table is not None:
                    table.weight[0] = 0.0
        self.features = FeatureEncoder(shape, embedding_size)

    def forward(self, id_index: Tensor, features: FeatureBatch) -> Tensor:
        """id_index: [n] int64, 0 for unknown ids; features: n rows -> [n, d]."""
        return cast(Tensor, self.ids(self._some_hidden(id_index)) + self.features(features))

    def as_history(self, vectors: Tensor, id_index: Tensor) -> Tensor:
        """Return the history-input vectors of items: their own vectors plus their second rows.

        vectors: [n, d], as `TwoTower.embed_items` returns them; id_index: [n] int64 -> [n, d].
        """
        if self.history_ids is None:
            return vectors
        rows = self.history_ids(self._some_hidden(id_index))
        if self.training and self.history_row_dropout > 0:
            rows = rows * (torch.rand(len(rows), 1, device=rows.device) >= self.history_row_dropout)
        return vectors + rows

    def _some_hidden(self, id_index: Tensor) -> Tensor:
        if not (self.training and self.id_dropout > 0):
            return id_index
        return id_index.masked_fill(torch.rand(id_index.shape, device=id_index.device) < self.id_dropout, 0)


class UserTower(nn.Module):
    """User tower: a vector at every position of a timeline, from the history so far and the features as of then."""

    def __init__(self, shape: FeatureShape, architecture: Architecture) -> None:
        """shape: of the user features.

        Raises:
            ValueError: the history encoder is none of the three.
        """
        super().__init__()
        d, history = architecture.embedding_size, architecture.history
        self.embedding_size, self.history_length = d, architecture.history_length
        self.features = FeatureEncoder(shape, d, 2 * d, architecture.dropout)
        self.begin: nn.Parameter | None = None
        self.history: MeanHistory | TransformerHistory | None = None
        if history == "none":
            self.begin = init_parameter(d)
        elif history == "mean":
            self.history = MeanHistory(
                d,
                event_types=architecture.event_types,
                time_gaps=architecture.time_gaps,
                dropout=architecture.dropout,
            )
        elif history == "transformer":
            self.history = TransformerHistory(
                d,
                architecture.history_length,
                event_types=architecture.event_types,
                time_gaps=architecture.time_gaps,
                layers=architecture.layers,
                heads=architecture.heads,
                dropout=architecture.dropout,
                norm=architecture.norm,
            )
        else:
            raise ValueError(f"history must be 'none', 'mean' or 'transformer', got {history!r}")

    def forward(self, history_vectors: Tensor, timelines: TimelineInputs) -> Tensor:
        """Return a vector at each of L + 1 positions of b timelines; position t has seen exactly the events before t.

        history_vectors: [b, L, d], the vectors of `timelines.item_index`.

        Returns:
            [b, L + 1, d]; positions beyond `length` have no meaning.
        """
        if self.history is not None:
            state = self.history(history_vectors, timelines.event_type, timelines.gap_seconds, timelines.length)
        else:
            assert self.begin is not None
            state = self.begin.expand(*timelines.feature_row.shape, -1)
        if self.features.shape.is_empty:
            return state
        return state + self.features(timelines.user_features)[timelines.feature_row]

    def at_end(self, item_vectors: Tensor, timelines: TimelineInputs) -> Tensor:
        """Return `forward` at position `length` only, [b, d], in evaluation mode, without computing the others.

        item_vectors: [n, d], of which `timelines.item_index` are the `history_vectors` of `forward`.
        """
        if self.history is not None:
            read = (timelines.item_index, timelines.event_type, timelines.gap_seconds, timelines.length)
            state = self.history.at_end(item_vectors, *read)
        else:
            assert self.begin is not None
            state = self.begin.expand(len(timelines.length), -1)
        if self.features.shape.is_empty:
            return state
        length = timelines.length
        row = timelines.feature_row[torch.arange(len(length), device=length.device), length]
        return state + self.features(timelines.user_features)[row]


class TwoTower(nn.Module):
    """Both towers and the similarity between their vectors (the retrieval model of Yi et al. 2019)."""

    def __init__(self, item_tower: ItemTower, user_tower: UserTower, similarity: str = "cosine") -> None:
        """similarity: "cosine" (vectors are L2-normalised) or "dot".

        Raises:
            ValueError: `similarity` is neither.
        """
        super().__init__()
        if similarity not in ("cosine", "dot"):
            raise ValueError(f"similarity must be 'cosine' or 'dot', got {similarity!r}")
        self.item_tower, self.user_tower, self.similarity = item_tower, user_tower, similarity

    def embed_items(self, id_index: Tensor, features: FeatureBatch) -> Tensor:
        """id_index: [n] int64; features: n rows -> [n, d], L2-normalised when the similarity is cosine."""
        return self._finish(self.item_tower(id_index, features))

    def embed_timelines(self, history_vectors: Tensor, timelines: TimelineInputs) -> Tensor:
        """Arguments as in `UserTower.forward` -> [b, L + 1, d], L2-normalised when the similarity is cosine."""
        return self._finish(self.user_tower(history_vectors, timelines))

    def embed_users(self, item_vectors: Tensor, timelines: TimelineInputs) -> Tensor:
        """Return the vectors [b, d] of users after all `length` events; arguments as in `UserTower.at_end`."""
        if not self.training:
            return self._finish(self.user_tower.at_end(item_vectors, timelines))
        every = self.embed_timelines(item_vectors[timelines.item_index], timelines)
        return every[torch.arange(len(timelines.length), device=every.device), timelines.length]

    def sparse_parameters(self) -> list[nn.Parameter]:
        """Embedding tables of which a step touches only some rows; they need a row-wise optimizer."""
        items, users = self.item_tower, self.user_tower
        tables = (items.ids, items.history_ids, items.features.tokens, users.features.tokens)
        return [cast(nn.Parameter, table.weight) for table in tables if table is not None]

    def dense_parameters(self) -> list[nn.Parameter]:
        """All other parameters."""
        sparse = {id(parameter) for parameter in self.sparse_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in sparse]

    def _finish(self, vectors: Tensor) -> Tensor:
        # The products may be in bf16; the norm is computed in float32.
        vectors = vectors.float()
        return F.normalize(vectors, dim=-1) if self.similarity == "cosine" else vectors


def build_two_tower(**arguments: Any) -> TwoTower:
    """Return a new model from plain JSON-able arguments, the fields of `Architecture`; a bundle stores them.

    Raises:
        TypeError: an argument is missing or unknown.
        ValueError: `history`, `norm` or `similarity` has an unknown value.
    """
    architecture = Architecture(**arguments)
    item_tower = ItemTower(
        architecture.vocabulary_size,
        FeatureShape(**architecture.item_shape),
        architecture.embedding_size,
        id_dropout=architecture.id_dropout,
        history_rows=architecture.history_rows and architecture.history != "none",
        # Without dropout anywhere a step is the same each time.
        history_row_dropout=HISTORY_ROW_DROPOUT if architecture.dropout > 0 else 0.0,
    )
    user_tower = UserTower(FeatureShape(**architecture.user_shape), architecture)
    return TwoTower(item_tower, user_tower, architecture.similarity)
