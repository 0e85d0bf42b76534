"""Settings file of a new project: every setting with a comment and its default or given value.

`render_settings` returns the text of a `rec_ray.yaml` for nested values and notes; `load_settings` reads the same
settings from it. Comments are the descriptions of the sections in `config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import yaml

from rec_ray.config import SECRETS, Section, Settings


def render_settings(values: Mapping[str, Any] | None = None, notes: Mapping[str, str] | None = None) -> str:
    """Return a settings file with every setting, its default or given value, and a comment on each.

    Args:
        values: nested values that differ from the defaults.
        notes: further comments by `section.key`, placed between the description and the setting.
    """
    settings = Settings.model_validate(values or {})
    dumped = settings.model_dump(mode="json")
    lines = [
        "# Settings of this rec_ray project. An environment variable REC_RAY__SECTION__KEY or the option",
        "# --set section.key=value overrides a setting. Relative paths are relative to this file. Variables match",
        "# names of features and event types in this file in any case; other names are taken in lower case.",
    ]
    for name, field in Settings.model_fields.items():
        section = cast(type[Section], field.annotation)
        lines += ["", f"# {section.__doc__}", f"{name}:"]
        lines += _render(section, dumped[name], 1, name, notes or {})
    return "\n".join(lines) + "\n"


def _render(
    section: type[Section], values: Mapping[str, Any], depth: int, path: str, notes: Mapping[str, str]
) -> list[str]:
    lines = []
    indent = "  " * depth
    for key, field in section.model_fields.items():
        full = f"{path}.{key}"
        lines.append(f"{indent}# {field.description}")
        lines += [f"{indent}# {line}" for line in notes.get(full, "").splitlines()]
        value = values[key]
        if (path, key) in SECRETS:
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            lines += [f"{indent}{key}:", *_render(field.annotation, value, depth + 1, full, notes)]
        elif isinstance(value, dict) and value and not field.get_default(call_default_factory=True):
            lines.append(f"{indent}{key}:")
            lines += [f"{indent}  {_to_yaml(name)}: {_to_yaml(_drop_nulls(entry))}" for name, entry in value.items()]
        else:
            lines.append(f"{indent}{key}: {_to_yaml(value)}")
    return lines


def _drop_nulls(value: Any) -> Any:
    return {key: entry for key, entry in value.items() if entry is not None} if isinstance(value, dict) else value


def _to_yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.strip().removesuffix("...").strip()
