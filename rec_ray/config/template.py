"""Settings file of a new project: the settings that people change, each with a comment and its value.

`render_settings` returns the text of a `rec_ray.yaml` for nested values and notes; `load_settings` reads the same
settings from it. Comments are the descriptions of the sections in `config` and the allowed values. All other settings
keep their defaults and are listed in docs/configuration.md.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from rec_ray.config import SECRETS, Section, Settings
from rec_ray.config.reference import allowed_values, is_section, to_yaml

SHOWN: Mapping[str, tuple[str, ...]] = {
    "features": (
        "user",
        "item",
        "item_name",
        "interaction.type_field",
        "interaction.value_field",
        "interaction.min_positive_value",
        "interaction.weights",
        "interaction.negative_types",
    ),
    "candidates": ("k", "exclude_seen", "diversity", "fresh_share", "similar_items"),
    "train": ("refit", "warm_start", "epochs", "learning_rate", "num_workers", "use_gpu"),
    "model": ("history", "embedding_size"),
    "evaluation": ("split", "gate"),
    "publish": ("keep_versions",),
    "feast": ("repo",),
    "storage": ("url", "endpoint"),
    "database": ("url",),
    "ray": ("address", "num_cpus"),
}
"""Section -> settings of the file, those that people change first on top."""

COLUMNS = 100
"""Width of the comments of the file."""


def render_settings(values: Mapping[str, Any] | None = None, notes: Mapping[str, str] | None = None) -> str:
    """Return a settings file with the usual settings and all given ones, and a comment on each.

    Args:
        values: nested values that differ from the defaults.
        notes: further comments by `section.key`, placed between the description and the setting.
    """
    settings = Settings.model_validate(values or {})
    dumped = settings.model_dump(mode="json")
    lines = [
        "# Settings of this rec_ray project, those that are changed first on top. All others keep their defaults:",
        "# docs/configuration.md lists them, and `rec-ray config explain SECTION.KEY` explains one. An environment",
        "# variable REC_RAY__SECTION__KEY or the option --set section.key=value overrides a setting. Relative paths",
        "# are relative to this file. Variables match names of features and event types in this file in any case;",
        "# other names are taken in lower case.",
    ]
    given = [name for name in Settings.model_fields if name not in SHOWN and name in (values or {})]
    for name in [*SHOWN, *given]:
        section = Settings.model_fields[name].annotation
        assert is_section(section) and section is not None
        wanted = _wanted(SHOWN.get(name, ()), (values or {}).get(name) or {}, notes or {}, name)
        lines += ["", f"# {section.__doc__}", f"{name}:"]
        lines += _render(section, dumped[name], 1, name, notes or {}, wanted)  # type: ignore[arg-type]
    return "\n".join(lines) + "\n"


def _wanted(shown: tuple[str, ...], given: Mapping[str, Any], notes: Mapping[str, str], section: str) -> set[str]:
    """Return the full names of the settings to write: the usual ones, the given ones, and those with a note."""
    found = {f"{section}.{key}" for key in shown} | {note for note in notes if note.startswith(f"{section}.")}
    pending = [(f"{section}.{key}", value) for key, value in given.items()]
    while pending:
        name, value = pending.pop()
        found.add(name)
        if isinstance(value, Mapping):
            pending += [(f"{name}.{key}", each) for key, each in value.items()]
    return found


def _render(
    section: type[Section],
    values: Mapping[str, Any],
    depth: int,
    path: str,
    notes: Mapping[str, str],
    wanted: set[str],
) -> list[str]:
    lines = []
    indent = "  " * depth
    for key, field in section.model_fields.items():
        full = f"{path}.{key}"
        if is_section(field.annotation):
            if any(name.startswith(f"{full}.") for name in wanted):
                lines.append(f"{indent}# {field.description}")
                lines.append(f"{indent}{key}:")
                lines += _render(field.annotation, values[key], depth + 1, full, notes, wanted)  # type: ignore[arg-type]
            continue
        if full not in wanted or (path, key) in SECRETS:
            continue
        said = f"{field.description} Values: {allowed_values(field)}."
        lines += [f"{indent}# {line}" for line in textwrap.wrap(said, COLUMNS - depth * 2, break_long_words=False)]
        lines += [f"{indent}# {line}" for line in notes.get(full, "").splitlines()]
        value = values[key]
        if isinstance(value, dict) and value and not field.get_default(call_default_factory=True):
            lines.append(f"{indent}{key}:")
            lines += [f"{indent}  {to_yaml(name)}: {to_yaml(_drop_nulls(entry))}" for name, entry in value.items()]
        else:
            lines.append(f"{indent}{key}: {to_yaml(value)}")
    return lines


def _drop_nulls(value: Any) -> Any:
    return {key: entry for key, entry in value.items() if entry is not None} if isinstance(value, dict) else value
