"""Two-tower recommendations from a Feast feature store, trained and computed for everyone on Ray.

Read `pipeline.py` first: it holds the order of the steps. `docs/architecture.md` explains each folder; `retrieval/`
holds the science, which takes arrays and tensors only.
"""

__version__ = "0.1.0"
