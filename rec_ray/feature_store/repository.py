"""A feature repository opened, its feature_store.yaml read before Feast reads it, so that no error shows its content.

The folder comes in and an open `FeatureStore` goes out, its passwords hidden from every log line. Errors name the line
and the column, never the content.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from pydantic import ValidationError

from rec_ray.errors import ConfigError, FeatureStoreError
from rec_ray.feature_store.api import FeatureStore
from rec_ray.feature_store.point_in_time import portable_config, secrets_in
from rec_ray.logs import hide_secrets, mask_secrets


def open_store(repo: str | Path) -> FeatureStore:
    """Open a feature repository; its secrets are masked in all log lines from then on.

    repo: the folder with feature_store.yaml, or that file by another name.

    Raises:
        ConfigError: the folder or its feature_store.yaml is not there or cannot be read.
        FeatureStoreError: the registry cannot be reached.
    """
    path = Path(repo)
    file = path if path.is_file() else path / "feature_store.yaml"
    if not file.is_file():
        raise ConfigError(f"{repo} has no feature_store.yaml; correct feast.repo or run `rec-ray init`")
    hide_secrets(read_secrets(file))
    folder = str(file.parent.resolve())
    try:
        store = FeatureStore(repo_path=folder, fs_yaml_file=file)
        hide_secrets(secrets_in(store.config))
        return FeatureStore(repo_path=folder, config=portable_config(store))
    # From None: the traceback of the original would print its text, with the values of the file in it.
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{file} cannot be read: {without_content(error)}") from None
    except Exception as error:
        said = f"the feature repository {repo} cannot be opened: {type(error).__name__}: {without_content(error)}"
        raise FeatureStoreError(said) from None


def read_secrets(path: Path) -> list[str]:
    """Return the passwords, keys and tokens in a feature_store.yaml, with variables of the environment filled in.

    Raises:
        ConfigError: it is no YAML mapping.
    """
    try:
        values = yaml.safe_load(os.path.expandvars(path.read_text(encoding="utf-8")))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path} is no valid YAML{where}; correct it there") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is no valid YAML ({type(error).__name__}); correct it") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no mapping of settings; see the documentation of Feast")
    parts: Any = SimpleNamespace(**{name: values.get(name) for name in ("registry", "offline_store", "online_store")})
    return secrets_in(parts)


def without_content(error: BaseException) -> str:
    """Return what is wrong with settings of Feast, without their values: pydantic repeats them, cut and uncut."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ValidationError):
            found = cause.errors(include_url=False, include_input=False, include_context=False)
            return "; ".join(f"{'.'.join(str(part) for part in each['loc'])}: {each['type']}" for each in found)
        cause = cause.__cause__ or cause.__context__
    return mask_secrets(str(error).splitlines()[0] if str(error) else type(error).__name__)
