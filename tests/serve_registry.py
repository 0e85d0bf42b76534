"""Feast's registry server, in a process of its own: `python serve_registry.py REPOSITORY PORT CERTIFICATE KEY`.

`feast serve_registry` also needs the packages of gRPC's health and reflection services; where one is missing, both
services are left out and the registry is served alone.
"""

import importlib.util
import sys
from unittest.mock import MagicMock


def main() -> None:
    """Serve until the process is ended."""
    services = {"grpc_health": "grpc_health.v1", "grpc_reflection": "grpc_reflection.v1alpha"}
    # The reflection service lists the names of the health service.
    if any(importlib.util.find_spec(package) is None for package in services):
        sys.modules |= {name: MagicMock() for names in services.items() for name in names}
    from feast import FeatureStore

    repository, port, certificate, key = sys.argv[1:]
    FeatureStore(repo_path=repository).serve_registry(int(port), key, certificate)


if __name__ == "__main__":
    main()
