"""Opens a feature repository. It reads feature_store.yaml before Feast does, so that no error shows its content.

Input: the folder. Output: an open `FeatureStore` whose passwords are masked in all log lines. Errors name the line and
the column, never the content.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from pydantic import ValidationError

from rec_ray.errors import ConfigError, FeatureStoreError, list_names
from rec_ray.feature_store.api import FeatureStore
from rec_ray.feature_store.point_in_time import portable_config, secrets_in
from rec_ray.logs import hide_secrets, mask_secrets

_VARIABLE = re.compile(r"\$\{\w+\}")


def open_store(repo: str | Path) -> FeatureStore:
    """Open a feature repository; its secrets are masked in all log lines from then on.

    repo: the folder with feature_store.yaml, or that file by another name.

    Raises:
        ConfigError: the folder or its feature_store.yaml is missing or unreadable.
        FeatureStoreError: the registry is unreachable.
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
    # `from None`, because the traceback of the original would print the values of the file.
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{file} cannot be read: {without_content(error)}{_unset_variables(file)}") from None
    except Exception as error:
        if unset := _unset_variables(file):
            raise ConfigError(f"{file} cannot be read: {without_content(error)}{unset}") from None
        said = f"the feature repository {repo} cannot be opened: {type(error).__name__}: {without_content(error)}"
        raise FeatureStoreError(said) from None


def read_secrets(path: Path) -> list[str]:
    """Return the passwords, keys and tokens of a feature_store.yaml, with environment variables substituted.

    Raises:
        ConfigError: the file is not a YAML mapping.
    """
    try:
        values = yaml.safe_load(os.path.expandvars(path.read_text(encoding="utf-8")))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path} is not valid YAML{where}; correct it there") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML ({type(error).__name__}); correct it") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} contains no mapping of settings; see the documentation of Feast")
    parts: Any = SimpleNamespace(**{name: values.get(name) for name in ("registry", "offline_store", "online_store")})
    return secrets_in(parts)


def _unset_variables(file: Path) -> str:
    """Return a note on the variables in the file that are not set, empty without one."""
    lines = [line.partition("#")[0] for line in file.read_text(encoding="utf-8").splitlines()]
    names = sorted(set(_VARIABLE.findall("\n".join(lines))))
    unset = [name for name in names if os.path.expandvars(name) == name]
    return f"; it contains {list_names(unset)}, which is not set" if unset else ""


def without_content(error: BaseException) -> str:
    """Return an error about Feast settings without their values, which pydantic repeats in its messages."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ValidationError):
            found = cause.errors(include_url=False, include_input=False, include_context=False)
            return "; ".join(f"{'.'.join(str(part) for part in each['loc'])}: {each['type']}" for each in found)
        cause = cause.__cause__ or cause.__context__
    return mask_secrets(str(error).splitlines()[0] if str(error) else type(error).__name__)
