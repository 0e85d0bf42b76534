"""Two-tower recommendations from a Feast feature store, trained and computed for everyone on Ray.

Read `pipeline.py` first: it holds the order of the steps. `docs/architecture.md` explains each folder; `retrieval/`
holds the science, which takes arrays and tensors only.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rec_ray.api.fitting import fit
    from rec_ray.api.recommender import Recommender

__all__ = ["Recommender", "__version__", "fit"]

_API = {"Recommender": "rec_ray.api.recommender", "fit": "rec_ray.api.fitting"}


def __getattr__(name: str) -> Any:
    """Import a name of the Python API at its first use, because torch takes seconds to import."""
    if name not in _API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_API[name]), name)
