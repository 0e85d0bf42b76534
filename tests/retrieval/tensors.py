"""Encoded features as the tensors that towers read."""

from __future__ import annotations

from rec_ray.retrieval.features.batch import FeatureBatch
from rec_ray.retrieval.features.preprocessing import EncodedFeatures


def to_batch(encoded: EncodedFeatures) -> FeatureBatch:
    """Return encoded features as a batch of tensors."""
    return FeatureBatch.from_numpy(encoded.numeric, encoded.tokens, encoded.token_counts, encoded.vector)
