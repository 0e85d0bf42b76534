"""Top-k search over item vectors: exact in float32 order, in shards, on a device, or approximate with measured recall.

Each module takes arrays and returns item indices and scores in rank order.
"""

from rec_ray.retrieval.search.exact import ExactTopK
from rec_ray.retrieval.search.float32 import MAX_ITEMS
from rec_ray.retrieval.search.int8_index import QuantisedItems, quantise_items
from rec_ray.retrieval.search.keys import Exclusions, merge_top_k
from rec_ray.retrieval.search.sharded import TopKSearch, search_shards

__all__ = [
    "MAX_ITEMS",
    "ExactTopK",
    "Exclusions",
    "QuantisedItems",
    "TopKSearch",
    "merge_top_k",
    "quantise_items",
    "search_shards",
]
