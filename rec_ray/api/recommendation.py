"""List of recommended items, as the Python API returns it.

Input: ids and scores. Output: a frozen object; it loads nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

MODEL, POPULARITY = "model", "popularity"


@dataclass(frozen=True)
class Recommendation:
    """A list of items, best first.

    version: model version that made it. scores: the similarity of user and item vector, or for popularity the item's
    share of all positive events. method: `model` or `popularity`.
    """

    version: str
    item_ids: list[str]
    scores: list[float]
    method: str = MODEL

    def __len__(self) -> int:
        """Number of items."""
        return len(self.item_ids)
