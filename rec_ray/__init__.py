"""Two-tower recommendations from a Feast feature store, trained and computed for everyone on Ray.

Read `pipeline.py` first: it is the order of the steps. Then the line, in that order: `load_features`,
`training_data`, `train`, `evaluate`, `model_store`, `candidates`, `update_features`, `model_version`. Then
`retrieval/`, the science, which knows arrays and tensors only.
"""

__version__ = "0.1.0"
