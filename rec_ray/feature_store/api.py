"""Names of Feast that the program uses, imported in half the time; no other module imports Feast.

Feast comes in with its classes as they are written, and names of it go out. It knows nothing of what is done with them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typeguard


def _as_written(target: Any = None, **_options: Any) -> Any:
    """Stand for `typeguard.typechecked`: give a class or function back as it is."""
    return _as_written if target is None else target


# Feast (0.67) has typeguard parse and compile 60 of its classes anew in each process that imports it, 2.5 of 5 seconds;
# mypy has checked the calls made here, and `feast apply` checks definitions in a process of its own.
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
