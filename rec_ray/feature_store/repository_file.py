"""The file feature_store.yaml, read before Feast reads it, so that no error shows what is in it.

The path comes in; the passwords in it go out, to be hidden. Errors name the line and the column, never the content.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from pydantic import ValidationError

from rec_ray.errors import ConfigError
from rec_ray.feature_store.point_in_time import secrets_in
from rec_ray.logs import mask_secrets


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
