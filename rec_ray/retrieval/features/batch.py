"""Data structures of encoded features, the input of the towers.

A `FeatureBatch` contains numbers, token bags and ready-made vectors of `n` rows (items or user states). Input: numpy
arrays. Output: torch tensors that can be selected by row and moved to a device. The preprocessor encodes features; a
tower needs only their `FeatureShape`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class FeatureShape:
    """Widths of a side's encoded features: plain integers, so `dataclasses.asdict` of it is JSON.

    numeric: width of the numeric block.
    fields:  number of token fields (one for each categorical, multi-valued, path or text feature).
    tokens:  rows of the side's shared token table; token 0 is the unknown value.
    vector:  total width of the ready-made vectors.
    """

    numeric: int = 0
    fields: int = 0
    tokens: int = 0
    vector: int = 0

    def __post_init__(self) -> None:
        """Refuse invalid widths.

        Raises:
            ValueError: a width is negative, or there are token fields without a token table.
        """
        if min(self.numeric, self.fields, self.tokens, self.vector) < 0:
            raise ValueError(f"expected widths of 0 or more, got {self}")
        if self.fields and not self.tokens:
            raise ValueError(f"{self.fields} token fields need a token table of at least 1 row, got tokens=0")

    @property
    def is_empty(self) -> bool:
        """True if there is no feature."""
        return not (self.numeric or self.fields or self.vector)


@dataclass
class FeatureBatch:
    """Encoded features of `n` rows.

    numeric:      [n, numeric] float32.
    tokens:       [T] int64, all tokens one after another: row 0 field 0, row 0 field 1, ..., row 1 field 0, ...
    token_counts: [n, fields] int64, number of `tokens` of each row and field; 0 is an empty bag.
    vector:       [n, vector] float32.
    """

    numeric: Tensor
    tokens: Tensor
    token_counts: Tensor
    vector: Tensor

    @classmethod
    def from_numpy(
        cls,
        numeric: npt.NDArray[Any],
        tokens: npt.NDArray[Any],
        token_counts: npt.NDArray[Any],
        vector: npt.NDArray[Any],
    ) -> FeatureBatch:
        """Make a batch from arrays of the shapes above; types are converted, memory is shared if possible.

        Raises:
            ValueError: the arrays disagree about the number of rows or tokens.
        """
        rows = {"numeric": len(numeric), "token_counts": len(token_counts), "vector": len(vector)}
        if len(set(rows.values())) != 1:
            raise ValueError(f"numeric, token_counts and vector must have one row per entity, got {rows}")
        if int(token_counts.sum()) != len(tokens):
            raise ValueError(f"token_counts add up to {int(token_counts.sum())}, but there are {len(tokens)} tokens")
        return cls(
            numeric=_tensor(numeric, np.float32),
            tokens=_tensor(tokens, np.int64),
            token_counts=_tensor(token_counts, np.int64),
            vector=_tensor(vector, np.float32),
        )

    @classmethod
    def empty(cls, rows: int, device: torch.device | str = "cpu") -> FeatureBatch:
        """Return `rows` rows without any feature, for a side that declares none."""
        return cls(
            numeric=torch.zeros(rows, 0, device=device),
            tokens=torch.zeros(0, dtype=torch.long, device=device),
            token_counts=torch.zeros(rows, 0, dtype=torch.long, device=device),
            vector=torch.zeros(rows, 0, device=device),
        )

    def __len__(self) -> int:
        """Number of rows."""
        return self.numeric.shape[0]

    def select(self, rows: Tensor) -> FeatureBatch:
        """Return the batch of the given rows, in that order; repeats are allowed.

        rows: [m] int64 in [0, n).
        """
        first, row_tokens = self._bags
        counts, length = self.token_counts[rows], row_tokens[rows]
        # The i-th token of a selected row is i positions after the first token of that row.
        total = int(length.sum())
        within = torch.arange(total, device=rows.device) - torch.repeat_interleave(
            length.cumsum(0) - length, length, output_size=total
        )
        source = torch.repeat_interleave(first[rows], length, output_size=total) + within
        return FeatureBatch(self.numeric[rows], self.tokens[source], counts, self.vector[rows])

    @functools.cached_property
    def _bags(self) -> tuple[Tensor, Tensor]:
        """Start and number of the tokens of each row, [n] each; cached for all selections."""
        row_tokens = self.token_counts.sum(1)
        return row_tokens.cumsum(0) - row_tokens, row_tokens

    def to(self, device: torch.device | str, non_blocking: bool = False) -> FeatureBatch:
        """Return the same batch on `device`."""
        return FeatureBatch(
            self.numeric.to(device, non_blocking=non_blocking),
            self.tokens.to(device, non_blocking=non_blocking),
            self.token_counts.to(device, non_blocking=non_blocking),
            self.vector.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> FeatureBatch:
        """Return the same batch in page-locked memory, for `to(..., non_blocking=True)`."""
        return FeatureBatch(
            self.numeric.pin_memory(),
            self.tokens.pin_memory(),
            self.token_counts.pin_memory(),
            self.vector.pin_memory(),
        )


def _tensor(array: npt.NDArray[Any], dtype: type[np.generic]) -> Tensor:
    array = np.ascontiguousarray(array, dtype=dtype)
    # Copy read-only arrays, as from Arrow and Ray, because torch warns about them.
    return torch.from_numpy(array if array.flags.writeable else array.copy())
