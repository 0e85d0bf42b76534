"""Feast names that the program uses. Only this module imports Feast, because it halves the import time.

It replaces `typeguard.typechecked` while Feast is imported, puts off Feast's import of torch, and exports the names.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import typeguard


def _as_written(target: Any = None, **_options: Any) -> Any:
    """Replace `typeguard.typechecked`: return the class or function unchanged."""
    return _as_written if target is None else target


def _lazy_torch() -> ModuleType:
    """Return a replacement of `feast.torch_wrapper` (0.67), which imports torch before anything asks for a tensor."""
    module: Any = ModuleType("feast.torch_wrapper")
    module.get_torch = lambda: importlib.import_module("torch")
    return module


sys.modules.setdefault("feast.torch_wrapper", _lazy_torch())

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
