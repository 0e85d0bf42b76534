"""Feast names that the program uses. Only this module imports Feast, because it cuts the import time to a quarter.

It replaces `typeguard.typechecked` while Feast is imported, lets Feast import torch only on use, and exports the names.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import typeguard


def _as_written(target: Any = None, **_options: Any) -> Any:
    """Replace `typeguard.typechecked`: return the class or function unchanged."""
    return _as_written if target is None else target


def _torch_on_use() -> ModuleType:
    """Return a stand-in for `feast.torch_wrapper`, which imports torch as soon as Feast (0.67) is imported.

    Feast needs torch only in `to_tensor`, which asks `get_torch` of this module for it.
    """

    def get_torch() -> Any:
        import torch

        return torch

    wrapper = ModuleType("feast.torch_wrapper")
    wrapper.get_torch = get_torch  # type: ignore[attr-defined]
    return wrapper


sys.modules.setdefault("feast.torch_wrapper", _torch_on_use())
# A deprecation between ibis and DuckDB, libraries of Feast's offline store; no user of this program can act on it.
warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ibis\.")
# Feast (0.67) makes typeguard parse and compile 60 of its classes in each process that imports it, half of the import
# time. The checks are redundant here: mypy checks our calls, and `feast apply` checks definitions in its own process.
_checked: Callable[..., Any] = typeguard.typechecked
typeguard.typechecked = _as_written
try:
    from feast import Entity, FeatureService, FeatureStore, FeatureView, FileSource, PushSource, RepoConfig
    from feast.data_format import DeltaFormat
    from feast.data_source import PushMode
    from feast.infra.key_encoding_utils import serialize_entity_key
    from feast.infra.online_stores.helpers import _redis_key as redis_key
    from feast.infra.online_stores.helpers import compute_table_id
    from feast.infra.passthrough_provider import PassthroughProvider
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey as EntityKeyProto
    from feast.protos.feast.types.Value_pb2 import Value as ValueProto
    from feast.types import from_feast_to_pyarrow_type
finally:
    typeguard.typechecked = _checked

__all__ = [
    "DeltaFormat",
    "Entity",
    "EntityKeyProto",
    "FeatureService",
    "FeatureStore",
    "FeatureView",
    "FileSource",
    "PassthroughProvider",
    "PushMode",
    "PushSource",
    "RepoConfig",
    "ValueProto",
    "compute_table_id",
    "from_feast_to_pyarrow_type",
    "redis_key",
    "serialize_entity_key",
]
